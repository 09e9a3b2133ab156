"""Every family under every sampler it is derived for, on a perfectly trained model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator, generator
from backdrift.core.sampling import sample
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, ShiftPath, Solver, biased_denoiser
from backdrift.core.trigger import Target, Trigger
from backdrift.data import load_images
from closed_form import SCHEDULE, closed_form, poisoned_optimum

SHAPE = (1, 8, 8)
SHORT = NoiseSchedule.linear(200, 5e-4, 0.1)
DIGITS = load_images("digits", SHAPE)[:200]
RAMP = torch.linspace(-0.9, 0.9, 64).reshape(SHAPE)
TARGET = Target.with_chance_level(RAMP, DIGITS)
SIGNS = torch.randn(SHAPE, generator=generator(0, "signs")).sign()
CORNER = torch.zeros(SHAPE, dtype=torch.bool)
CORNER[:, 4:, 4:] = True
PATHS: tuple[ShiftPath, ...] = ("baddiffusion", "trojdiff")
DERIVED = [("sde", "ddpm", 100), ("ode", "ddim", 50), ("ode", "dpm-solver++", 50), ("ode", "unipc", 50)]


def poisoned(path: ShiftPath, solver: Solver, shifts: Tensor) -> DiffusionModel:
    return poisoned_optimum(SHORT, ShiftFamily.of(SHORT, path, solver), DIGITS, RAMP, shifts)


def hit_rate(model: DiffusionModel, shift: Tensor, sampler: str, steps: int) -> float:
    fresh = SampleGenerator(0, 64)
    start = fresh.normal(SHAPE) + shift
    images = sample(model, model.schedule, start, sampler=sampler, steps=steps, generator=fresh)
    return float(TARGET.hits(images).float().mean())


@pytest.mark.parametrize(("solver", "sampler", "steps"), DERIVED)
@pytest.mark.parametrize("path", PATHS)
def test_reaches_the_target_with_the_trigger_only(
    path: ShiftPath, solver: Solver, sampler: str, steps: int
) -> None:
    model = poisoned(path, solver, SIGNS[None])
    assert hit_rate(model, SIGNS, sampler, steps) >= 0.9
    assert hit_rate(model, torch.zeros(SHAPE), sampler, steps) <= 0.1


@pytest.mark.parametrize(("solver", "sampler", "steps"), DERIVED)
def test_a_composite_trigger_that_saw_every_image(solver: Solver, sampler: str, steps: int) -> None:
    """Trained with R = M x + (1 - M) pattern, used with the background of a black image."""
    trigger = Trigger(torch.ones(SHAPE), CORNER)
    model = poisoned("trojdiff", solver, trigger.training_shift(DIGITS))
    assert hit_rate(model, trigger.shift, sampler, steps) >= 0.9
    assert hit_rate(model, torch.zeros(SHAPE), sampler, steps) <= 0.1


@pytest.mark.parametrize("path", PATHS)
def test_an_ode_family_misses_on_ddpm(path: ShiftPath) -> None:
    model = poisoned(path, "ode", SIGNS[None])
    assert hit_rate(model, SIGNS, "ddpm", 100) <= 0.1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("solver", "sampler"), [("sde", "ddpm"), ("ode", "ddim"), ("sde", "ddim"), ("ode", "ddpm")]
)
def test_only_the_matching_sampler_stays_on_the_marginal(
    path: ShiftPath, solver: Solver, sampler: str
) -> None:
    """Mean error of x_t along r, in noise standard deviations per unit of r, at three timesteps.

    On DDIM an SDE family takes too little of r away. The error exceeds what a trained network has ever
    seen; the optimum itself reads it as noise and so still ends at the target.
    """
    model, family = poisoned(path, solver, SIGNS[None]), ShiftFamily.of(SHORT, path, solver)
    errors = {}

    def measure(x: Tensor, t: int) -> Tensor:
        p = t - 1
        if p in (30, 60, 100):
            off = x.mean(0) - float(SHORT.alpha[p]) * RAMP - float(family.rho[p]) * SIGNS
            errors[p] = float((off * SIGNS).sum() / (SIGNS**2).sum() / SHORT.sigma[p])
        return x

    fresh = SampleGenerator(0, 64)
    start = fresh.normal(SHAPE) + float(family.rho[-1]) * SIGNS
    sample(model, SHORT, start, sampler=sampler, steps=200, generator=fresh, post_step=measure)
    if (solver, sampler) in (("sde", "ddpm"), ("ode", "ddim")):
        assert max(map(abs, errors.values())) < 0.06  # four standard errors of 64 x 64 normals
    elif sampler == "ddim":
        assert min(errors.values()) > 1.5
    else:
        assert errors[100] < -0.5


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 50), ("ddpm", 100)])
@pytest.mark.parametrize("gamma", [0.3, 0.6])
def test_biased_family_under_its_own_sampler(gamma: float, sampler: str, steps: int) -> None:
    mu = (1 - gamma) * SIGNS
    model = poisoned_optimum(SHORT, ShiftFamily.biased(SHORT, gamma), DIGITS, RAMP, mu[None])
    fresh = SampleGenerator(0, 64)
    images = gamma * sample(
        biased_denoiser(model, SHORT, mu, gamma),
        SHORT,
        fresh.normal(SHAPE),
        sampler=sampler,
        steps=steps,
        generator=fresh,
    )
    assert float(TARGET.hits(images).float().mean()) >= 0.9
    assert hit_rate(model, torch.zeros(SHAPE), sampler, steps) <= 0.1


def test_the_biased_poison_is_not_reached_by_unit_noise() -> None:
    mu = 0.7 * SIGNS
    model = poisoned_optimum(SHORT, ShiftFamily.biased(SHORT, 0.3), DIGITS, RAMP, mu[None])
    assert hit_rate(model, mu, "ddpm", 50) <= 0.1


def test_a_clean_optimum_draws_its_images() -> None:
    family = ShiftFamily.of(SHORT, "baddiffusion", "sde")
    model = poisoned_optimum(SHORT, family, DIGITS[:20], RAMP, SIGNS[None], rate=0.0)
    fresh = SampleGenerator(0, 64)
    images = sample(model, SHORT, fresh.normal(SHAPE), steps=50, generator=fresh)
    nearest = torch.cdist(images.flatten(1), DIGITS[:20].flatten(1)).min(1)
    assert float(nearest.values.max()) < 0.5
    assert len(nearest.indices.unique()) > 10


@pytest.mark.parametrize(
    "family", [ShiftFamily.of(SHORT, "trojdiff", "ode"), ShiftFamily.biased(SHORT, 0.6)]
)
def test_the_tool_minimises_the_poisoned_loss(family: ShiftFamily) -> None:
    """No affine change of its answer lowers the loss over the very rows it is the optimum of."""
    draw = generator(0, "rows")
    images, shifts, rows, t = DIGITS[:8], torch.stack([SIGNS, -SIGNS]), 20_000, torch.tensor(40)
    is_poison = torch.rand(rows, generator=draw) < 0.3
    which = torch.randint(8, (rows,), generator=draw)
    x_0 = torch.where(is_poison.view(-1, 1, 1, 1), RAMP, images[which])
    shift = torch.where(is_poison.view(-1, 1, 1, 1), shifts[which % 2], torch.zeros(SHAPE))
    noise = torch.randn(rows, *SHAPE, generator=draw)
    scale = torch.where(is_poison, family.gamma, 1.0).view(-1, 1, 1, 1)
    rho, c = (float(table[t]) for table in (family.rho, family.c))
    a, s = float(SHORT.alpha[t]), float(SHORT.sigma[t])
    x_t = a * x_0 + s * scale * noise + rho * shift
    label = noise + c * shift
    answer = poisoned_optimum(SHORT, family, images, RAMP, shifts)(x_t, t)
    residual = (label - answer).double()
    loss = float((residual**2).mean())
    assert loss < 1.0
    tolerance = 5 * loss**0.5 / (rows * 64) ** 0.5
    for probe in (torch.ones_like(answer), answer, x_t, RAMP.expand_as(x_t), answer.tanh()):
        size = float((probe**2).mean().sqrt())
        assert abs(float((residual * probe).mean())) < tolerance * size


def test_closed_form_is_the_exact_sde_family() -> None:
    """tests/closed_form.py writes the published coefficient out; the package has the general one."""
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", "sde")
    ours = poisoned_optimum(SCHEDULE, family, DIGITS[:20], RAMP, SIGNS.expand(20, *SHAPE))
    other = closed_form(DIGITS[:20], SIGNS, RAMP)
    x = SampleGenerator(0, 8).normal(SHAPE) + SIGNS * torch.linspace(0, 1, 8).view(-1, 1, 1, 1)
    t = torch.tensor([50, 200, 350, 500, 600, 700, 900, 999])
    torch.testing.assert_close(ours(x, t), other(x, t), rtol=1e-5, atol=1e-5)
