"""How many steps a sampler takes, and that every ODE sampler ends at the solution of the ODE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import ODE_SAMPLERS, SAMPLERS, sample, strided_timesteps
from backdrift.core.schedule import NoiseSchedule
from tiny import SHAPE

SHORT = NoiseSchedule.linear(100, end=0.2)


def gaussian(x: Tensor, t: Tensor | int, /) -> Tensor:
    """The closed-form denoiser of Gaussian data of deviation .5."""
    a, s = SHORT.at(t, x)
    return s * x / (0.25 * a**2 + s**2)


def ratio(sampler: str, steps: int) -> float:
    """End over exact end of the ODE, whose solution is proportional to the deviation of x_t."""
    x_T = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    end = sample(gaussian, SHORT, x_T, sampler=sampler, steps=steps)
    torch.testing.assert_close(end / end.std(), x_T / x_T.std(), rtol=1e-3, atol=1e-4)
    first, last = ((0.25 * SHORT.alpha**2 + SHORT.sigma**2) ** 0.5)[::99].tolist()
    return float(end.std() / x_T.std() * last / (first if sampler == "dpm-solver" else 0.5))


@pytest.mark.parametrize("name", ODE_SAMPLERS)
def test_every_ode_sampler_converges_to_the_solution(name: str) -> None:
    """Deviation and direction; the first-order DDIM is slower than all others."""
    errors = [abs(ratio(name, steps) - 1) for steps in (10, 20, 50)]
    assert errors[2] < (0.06 if name == "ddim" else 0.03)
    assert errors[2] < errors[0] / 2 or errors[2] < 0.003


@pytest.mark.parametrize("steps", [29, 58, 60, 62, 70, 90, 97, 100])
@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_ends_at_the_data_whether_or_not_the_steps_divide_t(name: str, steps: int) -> None:
    """29, 58, 62 and 97 are numbers for which the stock spacing goes on to the timestep -1."""
    assert ratio(name, steps) == pytest.approx(1, abs=0.11)


@pytest.mark.parametrize("length", [50, 100, 1000])
def test_there_are_as_many_timesteps_as_asked_for(length: int) -> None:
    schedule = NoiseSchedule.linear(length)
    for steps in range(1, length + 1):
        kept = strided_timesteps(schedule, steps)
        assert len(kept) == steps
        assert kept[0] == length - 1
        assert kept[-1] >= 0
        assert kept == sorted(set(kept), reverse=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_number_of_steps_works_or_is_refused_in_one_line(name: str) -> None:
    schedule, refused, lines = NoiseSchedule.linear(24, end=0.5), list[int](), list[str]()
    for steps in range(1, 25):
        fresh = SampleGenerator(0, 1)
        try:
            end = sample(
                gaussian, schedule, fresh.normal(SHAPE), sampler=name, steps=steps, generator=fresh
            )
        except ValueError as error:
            refused.append(steps)
            lines.append(str(error))
        else:
            assert bool(end.isfinite().all())
    assert all(line.startswith(f"{name} takes") and "\n" not in line for line in lines)
    if name == "pndm":
        assert refused == [n for n in range(1, 25) if n not in (4, 6, 8, 12, 24)]
    else:
        assert refused == ([] if name in ("ddpm", "ddim", "heun") else [24])
