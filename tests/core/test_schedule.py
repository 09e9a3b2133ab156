"""The two tables against those of stock diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from backdrift.core.schedule import NoiseSchedule

MADE = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "squaredcos_cap_v2": NoiseSchedule.cosine,
}


@pytest.mark.parametrize("timesteps", [10, 1000])
@pytest.mark.parametrize("name", MADE)
def test_same_tables_as_diffusers(name: str, timesteps: int) -> None:
    ours = MADE[name](timesteps)
    stock = DDPMScheduler(num_train_timesteps=timesteps, beta_schedule=name)
    assert len(ours) == timesteps
    torch.testing.assert_close(ours.alphas_cumprod.float(), stock.alphas_cumprod, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(ours.betas.float(), stock.betas, rtol=1e-5, atol=1e-7)


def test_other_ends_of_the_linear_ramp() -> None:
    stock = DDPMScheduler(num_train_timesteps=50, beta_start=0.003, beta_end=0.2)
    ours = NoiseSchedule.linear(50, 0.003, 0.2)
    torch.testing.assert_close(ours.alphas_cumprod.float(), stock.alphas_cumprod)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-5, 0.99), min_size=2, max_size=30))
def test_betas_round_trip(betas: list[float]) -> None:
    schedule = NoiseSchedule.from_betas(torch.tensor(betas, dtype=torch.float64))
    assert schedule.betas.tolist() == pytest.approx(betas, rel=1e-9)
    torch.testing.assert_close(
        schedule.alpha**2 + schedule.sigma**2, torch.ones(len(betas), dtype=torch.float64)
    )


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_bad_betas(bad: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NoiseSchedule.from_betas(torch.tensor([0.1, bad]))


@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [
        (torch.ones(3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)),
        (torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)),
        (torch.ones(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)),
        (torch.ones(3), torch.ones(3)),
    ],
)
def test_bad_tables(alpha: torch.Tensor, sigma: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="alpha and sigma"):
        NoiseSchedule(alpha, sigma)


def test_variance_exploding_tables_fit() -> None:
    schedule = NoiseSchedule(torch.ones(3, dtype=torch.float64), torch.tensor([1.0, 5.0, 50.0]).double())
    x_0, noise = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), -1.0)
    x_t = schedule.add_noise(x_0, noise, torch.tensor([0, 2]))
    assert x_t[:, 0, 0, 0].tolist() == [2.0, -47.0]


def test_add_noise_equals_stock() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 5, 3, 8, 8, generator=generator)
    t = torch.tensor([0, 1, 250, 700, 999])
    stock = DDPMScheduler().add_noise(x_0, noise, t)
    torch.testing.assert_close(NoiseSchedule.linear().add_noise(x_0, noise, t), stock, rtol=1e-5, atol=1e-5)


def test_one_timestep_for_the_whole_batch() -> None:
    schedule = NoiseSchedule.linear()
    x_0, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    together = schedule.add_noise(x_0, noise, torch.tensor([7, 7, 7]))
    assert torch.equal(schedule.add_noise(x_0, noise, 7), together)


def test_at_keeps_the_dtype_and_broadcasts() -> None:
    schedule = NoiseSchedule.linear()
    alpha, sigma = schedule.at(torch.tensor([3, 4]), torch.zeros(2, 3, 8, 8, dtype=torch.float16))
    assert alpha.dtype == sigma.dtype == torch.float16
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
