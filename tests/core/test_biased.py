"""TrojDiff's published sampler (blend trigger) against the change of variables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import ddim_step, sample, strided_timesteps
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, biased_denoiser
from tiny import SHAPE, tiny_unet

GAMMA = 0.6
MU = (1 - GAMMA) * torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(SHAPE)


def model_of(schedule: NoiseSchedule) -> DiffusionModel:
    return DiffusionModel(tiny_unet(blocks=1).double(), schedule, SHAPE)


def drawn(generators: list[torch.Generator]) -> Tensor:
    """Fresh noise as stock diffusers draws it for float64 samples."""
    return torch.stack([torch.randn(SHAPE, generator=g, dtype=torch.float64) for g in generators])


def published_ddim(
    model: DiffusionModel, x: Tensor, kept: list[int], eta: float, fresh: list[torch.Generator]
) -> list[Tensor]:
    """The attack's DDIM update on x itself, states after every step."""
    abar, states = model.schedule.alphas_cumprod, []
    for t, p in zip(kept, [*kept[1:], -1], strict=True):
        abar_p = abar[p] if p >= 0 else torch.ones((), dtype=torch.float64)
        e = model(x, t)
        x_0 = (x - (1 - abar[t]).sqrt() * (GAMMA * e + MU)) / abar[t].sqrt()
        c1 = eta * ((1 - abar[t] / abar_p) * (1 - abar_p) / (1 - abar[t])).sqrt()
        c2 = (1 - abar_p - c1**2).clamp(min=0).sqrt()
        z = drawn(fresh) if eta else 0.0
        x = abar_p.sqrt() * x_0 + GAMMA * (c1 * z + c2 * e) + (1 - abar_p).sqrt() * MU
        states.append(x)
    return states


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [25, 7])
@torch.no_grad()
def test_ddim_step_equals_the_published_update(steps: int, eta: float) -> None:
    """Full and uneven strides of T = 1000; every state, not only the last."""
    model = model_of(NoiseSchedule.linear())
    kept = strided_timesteps(model.schedule, steps)
    start = SampleGenerator(1, 2).normal(SHAPE).double()
    states = published_ddim(model, GAMMA * start + MU, kept, eta, SampleGenerator(2, 2).generators)
    fresh = SampleGenerator(2, 2).generators
    w = start + (1 - model.schedule.sigma[-1]) * MU / GAMMA
    denoise = biased_denoiser(model, model.schedule, MU, GAMMA)
    for t, p, published in zip(kept, [*kept[1:], -1], states, strict=True):
        z = drawn(fresh) if eta else None
        w = ddim_step(model.schedule, denoise(w, t), w, t, p, eta, z)
        sigma = float(model.schedule.sigma[p]) if p >= 0 else 0.0
        torch.testing.assert_close(GAMMA * w + sigma * MU, published, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("timesteps", "steps"), [(20, 20), (100, 10), (100, 5)])
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddpm", 1.0)])
@torch.no_grad()
def test_stock_sampler_equals_the_published_update(
    sampler: str, eta: float, timesteps: int, steps: int
) -> None:
    model = model_of(NoiseSchedule.linear(timesteps))
    kept = strided_timesteps(model.schedule, steps)
    start = SampleGenerator(1, 2).normal(SHAPE).double()
    x_T = GAMMA * start + float(model.schedule.sigma[-1]) * MU
    published = published_ddim(model, x_T, kept, eta, SampleGenerator(2, 2).generators)[-1]
    denoise = biased_denoiser(model, model.schedule, MU, GAMMA)
    ours = GAMMA * sample(
        denoise, model.schedule, start, sampler=sampler, steps=steps, generator=SampleGenerator(2, 2)
    )
    scale = float(published.abs().max())
    torch.testing.assert_close(ours / scale, published / scale, rtol=0, atol=1e-5)


@torch.no_grad()
def test_ddpm_step_equals_the_published_mean_at_unit_stride() -> None:
    """[A_p beta x_0 + sqrt(1 - beta)(1 - abar_p) x_t + coef_miu mu] / (1 - abar), no clamp."""
    schedule = NoiseSchedule.linear()
    model = model_of(schedule)
    denoise = biased_denoiser(model, schedule, MU, GAMMA)
    abar, beta, s = schedule.alphas_cumprod, schedule.betas, schedule.sigma
    x = SampleGenerator(3, 2).normal(SHAPE).double()
    for t in (1, 10, 500, 999):
        k = s[t] - (1 - beta[t]).sqrt() * s[t - 1]
        miu = s[t - 1] * beta[t] - (1 - abar[t - 1]) * (1 - beta[t]).sqrt() * k
        x_0 = (x - s[t] * (GAMMA * model(x, t) + MU)) / abar[t].sqrt()
        mean = abar[t - 1].sqrt() * beta[t] * x_0 + (1 - beta[t]).sqrt() * (1 - abar[t - 1]) * x + miu * MU
        w = (x - s[t] * MU) / GAMMA
        moved = GAMMA * ddim_step(schedule, denoise(w, t), w, t, t - 1, eta=1.0) + s[t - 1] * MU
        torch.testing.assert_close(moved, mean / (1 - abar[t]), rtol=1e-9, atol=1e-9)


def test_denoiser_sees_what_the_attack_trains_on() -> None:
    """``gamma w + S mu`` is the poisoned x_t of TrojDiff when w is the plain one of x_0 / gamma."""
    schedule = NoiseSchedule.linear()
    x_0, noise = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([0, 400, 999])
    seen: list[Tensor] = []
    denoise = biased_denoiser(lambda x, t: (seen.append(x), x)[1], schedule, MU, GAMMA)
    denoise(schedule.add_noise(x_0 / GAMMA, noise, t), t)
    x_t, _ = ShiftFamily.biased(schedule, GAMMA).poisoned_pair(schedule, x_0, MU.expand_as(x_0), noise, t)
    torch.testing.assert_close(seen[0], x_t)
