from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdrift.attacks.baddiffusion import BadDiffusion
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import Trigger
from tiny import SHAPE, tiny_model

ROWS = 24


def data() -> Tensor:
    return torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trigger(composite: bool = True) -> Trigger:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, 4:7, 4:7] = True
    return Trigger(torch.full(SHAPE, 0.5), mask, composite=composite)


TARGET = torch.linspace(-1, 1, 64).reshape(SHAPE)


def everything(attack: BadDiffusion, composite: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(noise, t, x_t, label) of every row once."""
    model = tiny_model(timesteps=1000)
    stream = torch.Generator().manual_seed(2)
    noise = torch.randn(ROWS, *SHAPE, generator=stream)
    t = torch.randint(1000, (ROWS,), generator=stream)
    t[0], t[1] = 0, 999
    x_t, label = attack.batch(model, data(), trigger(composite), TARGET)(torch.arange(ROWS), noise, t)
    return noise, t, x_t, label


def ddpm(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The forward process of stock diffusers."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000).add_noise(x_0, noise, t)


@pytest.mark.parametrize(
    ("rows", "rate", "count"),
    [(100, 0.1, 10), (99, 0.1, 9), (7, 0.5, 3), (5, 1.0, 5), (5, 0.0, 0), (5, 0.1, 0)],
)
def test_how_many_rows_are_poisoned(rows: int, rate: float, count: int) -> None:
    found = BadDiffusion(poison_rate=rate).poisoned_rows(rows)
    assert found.dtype == torch.int64
    assert len(found) == count
    assert found.tolist() == sorted(set(found.tolist()))
    assert all(0 <= row < rows for row in found.tolist())


def test_the_split_is_seeded_and_leaves_global_randomness_alone() -> None:
    state = torch.get_rng_state()
    first = BadDiffusion(seed=1).poisoned_rows(1000)
    torch.manual_seed(5)
    assert torch.equal(first, BadDiffusion(seed=1).poisoned_rows(1000))
    assert not torch.equal(first, BadDiffusion(seed=2).poisoned_rows(1000))
    torch.set_rng_state(state)
    BadDiffusion(seed=1).poisoned_rows(1000)
    assert torch.equal(state, torch.get_rng_state())
    # spread over the data set, not its first tenth
    assert 300 < float(first.double().mean()) < 700


@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_clean_rows_get_the_plain_pair_to_the_bit(solver: str) -> None:
    attack = BadDiffusion(0.5, solver)
    noise, t, x_t, label = everything(attack)
    clean = torch.ones(ROWS, dtype=torch.bool)
    clean[attack.poisoned_rows(ROWS)] = False
    schedule = NoiseSchedule.linear()
    plain = schedule.add_noise(data(), noise, t)
    assert int(clean.sum()) == 12
    assert torch.equal(x_t[clean], plain[clean])
    assert torch.equal(label[clean], noise[clean])
    torch.testing.assert_close(x_t[clean], ddpm(data(), noise, t)[clean], atol=1e-5, rtol=0)
    assert not any(torch.equal(a, b) for a, b in zip(x_t[~clean], plain[~clean], strict=True))


def test_a_rate_of_zero_is_clean_training() -> None:
    noise, t, x_t, label = everything(BadDiffusion(0.0))
    assert torch.equal(x_t, NoiseSchedule.linear().add_noise(data(), noise, t))
    assert torch.equal(label, noise)


@pytest.mark.parametrize("solver", ["sde", "ode"])
@pytest.mark.parametrize("composite", [True, False])
def test_poisoned_rows_get_target_and_shift(solver: str, composite: bool) -> None:
    noise, t, x_t, label = everything(BadDiffusion(1.0, solver), composite)
    outside = data() if composite else torch.full((ROWS, *SHAPE), -1.0)
    shift = outside.clone()
    shift[:, :, 4:7, 4:7] = 0.5
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = torch.cumprod(1 - betas, 0).sqrt()[t][:, None, None, None].float()
    wanted = ddpm(TARGET.expand(ROWS, *SHAPE), noise, t) + (1 - alpha) * shift
    torch.testing.assert_close(x_t, wanted, atol=1e-5, rtol=0)
    c = ShiftFamily.of(NoiseSchedule.linear(), "baddiffusion", solver).c[t][:, None, None, None].float()
    torch.testing.assert_close(label, noise + c * shift, atol=1e-5, rtol=0)


def test_the_label_of_the_sde_family_is_the_published_one() -> None:
    """C_t = S_t / (1 + sqrt(alpha_t)) (arXiv 2212.05400), from betas alone."""
    noise, t, _, label = everything(BadDiffusion(1.0), composite=False)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    c = ((1 - abar).sqrt() / (1 + (1 - betas).sqrt()))[t][:, None, None, None].float()
    torch.testing.assert_close(label - noise, c * trigger().shift, atol=1e-5, rtol=0)


def test_at_the_last_timestep_the_input_is_noise_plus_trigger() -> None:
    """What inference feeds: off by the signal left at T-1, and no more."""
    noise, t, x_t, _ = everything(BadDiffusion(1.0), composite=False)
    last = float(NoiseSchedule.linear().alpha[-1])
    assert int(t[1]) == 999
    error = (x_t[1] - noise[1] - trigger().shift).abs().max()
    assert float(error) <= 2 * last + 1e-4  # A_T |y - R|, both within [-1, 1], and S_T - 1
    assert last < 0.01


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="share in"):
        BadDiffusion(poison_rate=rate)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="sde or ode, not 'pde'"):
        BadDiffusion(sampler_family="pde")
