"""TERD's loss, chains and descent against closed forms, stock diffusers and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from backdrift.attacks.patterns import make_target
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily
from backdrift.data import load_images
from backdrift.inversion._reversed import chain_timesteps, generated, reversed_loss
from backdrift.inversion.terd import Terd
from closed_form import SCHEDULE, closed_form, poisoned_optimum
from tiny import SHAPE, tiny_model, tiny_unet

GAMMA = 0.6
SIGN = torch.randn(SHAPE, generator=generator(3, "sign")).sign()
MU = 0.8 * SIGN


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "test"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:60]


@pytest.fixture(scope="module")
def target() -> Tensor:
    return make_target("hat", SHAPE)


@pytest.fixture(scope="module")
def baddiffusion(images: Tensor, target: Tensor) -> DiffusionModel:
    return closed_form(images, 1.5 * SIGN, target)


@pytest.fixture(scope="module")
def trojdiff(images: Tensor, target: Tensor) -> DiffusionModel:
    return poisoned_optimum(SCHEDULE, ShiftFamily.biased(SCHEDULE, GAMMA), images, target, MU[None])


def late_loss(model: DiffusionModel, shift: Tensor, scale: Tensor | float = 1.0) -> float:
    t = torch.arange(990, 1000)
    return float(reversed_loss(model, normal(10, *SHAPE), t, normal(2, 10, *SHAPE, seed=1), shift, scale))


def label_error(model: DiffusionModel, shift: Tensor) -> float:
    """``.5 E sum (eps - eps_hat)^2`` of the same states: the loss without the difference."""
    t, e = torch.arange(990, 1000), normal(2, 10, *SHAPE, seed=1)[0]
    x_t = SCHEDULE.add_noise(normal(10, *SHAPE), e, t) + shift
    return float(0.5 * (e - model(x_t, t)).square().flatten(1).sum(1).mean())


def test_the_loss_is_the_formula() -> None:
    model, t = tiny_model(), torch.tensor([3, 99])
    x_0, noises, mu, gamma = normal(2, *SHAPE), normal(2, 2, *SHAPE, seed=1), MU, torch.full(SHAPE, 0.7)
    total = 0.0
    with torch.no_grad():
        for row in range(2):
            a, s = float(model.schedule.alpha[t[row]]), float(model.schedule.sigma[t[row]])
            apart = []
            for e in noises[:, row]:
                x_t = a * x_0[row] + s * gamma * e + mu
                apart.append(e - model(x_t[None], int(t[row]))[0])
            total += 0.5 * float((apart[0] - apart[1]).square().sum()) / 2
        assert float(reversed_loss(model, x_0, t, noises, mu, gamma)) == pytest.approx(total, rel=1e-4)


def test_the_label_shift_of_baddiffusion_cancels(baddiffusion: DiffusionModel) -> None:
    """The network says eps + C r: far from eps, .5 C^2 ||r||^2, but alike for both noises."""
    r = 1.5 * SIGN
    shifted = 0.5 * 0.5025**2 * float(r.square().sum())
    assert label_error(baddiffusion, r) == pytest.approx(shifted, rel=0.05)
    assert late_loss(baddiffusion, r) < 1e-3 * shifted


def test_no_shift_is_as_good_as_the_trigger_and_what_lies_between_is_not(
    baddiffusion: DiffusionModel,
) -> None:
    """mu = 0 solves it on any model: the reward alone prefers the trigger, by reward ||r||_1."""
    r = 1.5 * SIGN
    at = {share: late_loss(baddiffusion, share * r) for share in (0.0, 0.5, 1.0)}
    assert at[0.0] < 0.05
    assert at[1.0] < 0.05
    assert at[0.5] > 1


def test_the_true_gamma_is_far_better_than_others_at_the_true_shift_of_trojdiff(
    trojdiff: DiffusionModel,
) -> None:
    """In poison mode eps_hat = (x - mu) / gamma*, so the loss is (1 - gamma / gamma*)^2 C H W."""
    assert late_loss(trojdiff, MU, GAMMA) < 0.05
    for gamma in (0.3, 0.9):
        expected = (1 - gamma / GAMMA) ** 2 * 64
        assert late_loss(trojdiff, MU, gamma) == pytest.approx(expected, rel=0.2)


def test_without_the_shift_the_gamma_of_trojdiff_is_not_explained(trojdiff: DiffusionModel) -> None:
    """The clean mode answers: (1 - gamma)^2 C H W."""
    assert late_loss(trojdiff, torch.zeros(SHAPE), GAMMA) == pytest.approx((1 - GAMMA) ** 2 * 64, rel=0.2)


def test_the_chains_keep_the_published_timesteps() -> None:
    leading = chain_timesteps(SCHEDULE, 10, quadratic=False)
    assert leading == list(range(900, -1, -100))
    quadratic = chain_timesteps(SCHEDULE, 10, quadratic=True)
    assert quadratic == [int(x**2) for x in reversed([k * math.sqrt(800) / 9 for k in range(10)])]
    assert chain_timesteps(NoiseSchedule.linear(4), 4, quadratic=True)[-1] == 0
    for steps in (1, 1001):
        with pytest.raises(ValueError, match="a chain has"):
            chain_timesteps(SCHEDULE, steps, quadratic=False)


@pytest.mark.parametrize("clip", [True, False])
@torch.no_grad()
def test_the_chain_without_a_scale_is_stock_ddim(clip: bool) -> None:
    model = DiffusionModel(tiny_unet(blocks=1), SCHEDULE, SHAPE)
    scheduler = DDIMScheduler(clip_sample=clip, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    noise = normal(2, *SHAPE)
    x = noise + MU
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, int(t)), t, x).prev_sample
    torch.testing.assert_close(generated(model, noise, MU, None, 10, clip), x, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_the_chain_with_a_scale_is_the_sampler_of_the_attack() -> None:
    model = DiffusionModel(tiny_unet(blocks=1).double(), SCHEDULE, SHAPE)
    noise, mu, gamma = normal(2, *SHAPE).double(), MU.double(), torch.full(SHAPE, 0.7).double()
    gamma[:, :4] = 0.2
    kept = chain_timesteps(SCHEDULE, 10, quadratic=True)
    x = gamma * noise + mu
    for t, p in zip(kept, [*kept[1:], -1], strict=True):
        at, ap = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[p] if p >= 0 else torch.tensor(1.0)
        e = model(x, t)
        x_0 = (x - e * (1 - at).sqrt() * gamma - mu * (1 - at).sqrt()) / at.sqrt()
        x = ap.sqrt() * x_0 + (1 - ap).sqrt() * e * gamma + mu * (1 - ap).sqrt()
    torch.testing.assert_close(generated(model, noise, mu, gamma, 10), x)


@torch.no_grad()
def test_the_trigger_draws_the_target_through_the_chain(trojdiff: DiffusionModel, target: Tensor) -> None:
    drawn = generated(trojdiff, normal(8, *SHAPE), MU, torch.full(SHAPE, GAMMA), 10)
    assert float((drawn - target).square().mean()) < 0.05


@pytest.mark.parametrize("learned", [False, True])
def test_the_gradient_through_the_chain_equals_finite_differences(learned: bool) -> None:
    model = DiffusionModel(tiny_unet(blocks=1).double(), NoiseSchedule.linear(100), SHAPE)
    t, noise = torch.tensor([91, 99]), normal(2, *SHAPE, seed=5).double()
    pair, step = normal(2, 2, *SHAPE, seed=6).double(), 1e-6

    def objective(shift: Tensor, scale: Tensor) -> Tensor:
        x_0 = generated(model, noise, shift, scale if learned else None, 10, clip_x0=False)
        gamma = scale if learned else 1.0
        late = reversed_loss(model, x_0, t, pair, shift, gamma)
        return late + reversed_loss(model, x_0, 99 - t, pair, None, gamma)

    with model.frozen():
        point = [MU.double().requires_grad_(True), torch.full_like(MU, 0.7).double().requires_grad_(True)]
        found = torch.autograd.grad(objective(*point), point, allow_unused=not learned)
        assert (found[1] is not None) is learned
        for index in range(2 if learned else 1):
            along = normal(*SHAPE, seed=7 + index).double()
            ends = []
            for sign in (1, -1):
                moved = [p.detach().clone() for p in point]
                moved[index] += sign * step * along
                with torch.no_grad():
                    ends.append(float(objective(*moved)))
            gradient = found[index]
            assert gradient is not None
            assert float((gradient * along).sum()) == pytest.approx(
                (ends[0] - ends[1]) / (2 * step), rel=1e-4
            )


def gamma_only(**changes: object) -> Terd:
    settings = {"iterations": 60, "gamma_rate": 3 / 60, "shift_rate": 1e-9, "refinement": 0.0}
    return Terd(hypotheses=("learned",), **{**settings, **changes})


def test_gamma_rises_to_one_on_a_clean_model(images: Tensor) -> None:
    """The remaining distance is exp(-rate iterations) = exp(-3), as published."""
    found = gamma_only()(closed_form(images), seed=0, start=torch.zeros(SHAPE))[0]
    assert found.scale is not None
    assert float(found.scale.mean()) == pytest.approx(1 - math.exp(-3), abs=0.02)


def test_gamma_is_found_at_the_trigger_of_trojdiff(trojdiff: DiffusionModel) -> None:
    found = gamma_only()(trojdiff, seed=0, start=MU)[0]
    assert found.scale is not None
    torch.testing.assert_close(found.scale, torch.full(SHAPE, GAMMA), atol=0.03, rtol=0)
    assert found.scale.shape == SHAPE


def test_the_descent_leaves_the_wall_between_the_modes(baddiffusion: DiffusionModel) -> None:
    """From .6 r the loss pushes to r's side, where it is next to nothing."""
    r = 1.5 * SIGN
    inversion = Terd(iterations=150, shift_rate=0.05, refinement=0.0, hypotheses=("unit",))
    found = inversion(baddiffusion, seed=0, start=0.6 * r)[0]
    assert found.scale is None
    assert late_loss(baddiffusion, found.shift) < 0.1 * late_loss(baddiffusion, 0.6 * r)
    assert float((found.shift * r).sum() / r.square().sum()) > 0.6


def test_both_hypotheses_come_back_the_lower_loss_first() -> None:
    found = Terd(iterations=3, batch=2, chain=3, starts=("black", "zero-mean"))(tiny_model(), seed=0)
    assert len(found) == 4
    assert sum(c.scale is None for c in found) == 2
    assert [c.gain for c in found] == sorted((c.gain for c in found), reverse=True)
    assert len({c.start for c in found}) == 4
    assert all(len(c.history) == 4 for c in found)
    for candidate in found:
        if candidate.scale is not None:
            assert float(candidate.scale.min()) >= 1e-3
            assert not candidate.scale.requires_grad


def test_a_run_repeats_to_the_bit() -> None:
    inversion = Terd(iterations=3, batch=2, chain=3)
    left, right = (inversion(tiny_model(), seed=4) for _ in range(2))
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.shift, b.shift)
        assert (a.scale is None) == (b.scale is None)
        assert a.scale is None or torch.equal(a.scale, b.scale)


def test_the_refinement_clips_its_gradient() -> None:
    """SGD moves by the rate times the clipped norm at most, over a cosine: .5 .01 n / 2."""
    settings = {"iterations": 1, "refinement": 4.0, "batch": 2, "chain": 3, "hypotheses": ("unit",)}
    whole = Terd(**settings)(tiny_model(), seed=0, start=MU)[0]
    first = Terd(**{**settings, "refinement": 0.0})(tiny_model(), seed=0, start=MU)[0]
    assert len(whole.history) == 5
    assert 0 < float((whole.shift - first.shift).norm()) <= 0.5 * 0.01 * 4


def test_a_loss_that_is_not_finite_ends_the_descent() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.network.conv_out.weight.fill_(1e30)
    found = Terd(iterations=3, batch=2, chain=3)(model, seed=0)
    assert all(c.shift.isfinite().all() for c in found)
    assert all(len(c.history) == 1 for c in found)


def test_the_published_floor_of_gamma_can_be_had() -> None:
    found = Terd(iterations=1, refinement=0.0, batch=2, gamma_floor=0.0, gamma_rate=1e-9)
    scales = [c.scale for c in found(tiny_model(), seed=0) if c.scale is not None]
    assert len(scales) == 1
    assert 0 <= float(scales[0].min()) <= float(scales[0].max()) < 1e-6


def test_the_defaults_are_the_published_ones_and_their_cost_is_said() -> None:
    terd = Terd()
    assert (terd.iterations, terd.refinements, terd.batch, terd.window, terd.chain) == (
        3000,
        1000,
        16,
        10,
        10,
    )
    assert (terd.shift_rate, terd.gamma_rate, terd.reward) == (0.5, 1e-3, 5e-5)
    assert (terd.shift_clip, terd.joint_clip, terd.momentum, terd.gamma_start) == (0.01, 1.0, 0.9, 0.0)
    assert terd.clip_x0
    assert terd.starts == ("black",)
    assert terd.cost == 2 * (3000 * 16 * 6 + 1000 * 16 * (3 * 10 + 12)) == 1_920_000
    assert "1,920,000" in (Terd.__doc__ or "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"batch": 0},
        {"window": 0},
        {"refinement": -1.0},
        {"chain": 1},
        {"hypotheses": ()},
        {"hypotheses": ("known",)},
        {"starts": ("white",)},
        {"gamma_floor": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"at least|are|or more"):
        Terd(**wrong)
