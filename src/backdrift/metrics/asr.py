"""Attack success rate: the share of triggered samples that hit the target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import sample
from backdrift.core.trigger import Target

higher_is_better = True


@dataclass(frozen=True)
class AttackSuccess:
    """ASR beside the rate without the trigger, on the same seeds.

    Args:
        asr: in [0, 1].
        rate_without_trigger: hits of clean samples, in [0, 1].
        threshold: MSE in [0, 1] units that a hit stays below.
        n: samples for each of the two.
        sampler: with its number of steps, for example ``ddpm, 50 steps``.
    """

    asr: float
    rate_without_trigger: float
    threshold: float
    n: int
    sampler: str
    seed: int


def draw(
    model: DiffusionModel, shift: Tensor | None, *, sampler: str, steps: int, n: int, seed: int
) -> Tensor:
    """Samples (n, C, H, W) from noise, plus ``shift`` (C, H, W) if there is one; not clamped."""
    fresh = SampleGenerator(seed, n, "asr")
    x_T = fresh.normal(model.sample_shape, model.device)
    x_T = x_T if shift is None else x_T + shift.to(x_T)
    return sample(model, model.schedule, x_T, sampler=sampler, steps=steps, generator=fresh)


@torch.no_grad()
def attack_success(
    model: DiffusionModel,
    shift: Tensor,
    target: Target,
    *,
    sampler: str,
    steps: int = 50,
    n: int = 256,
    seed: int = 0,
) -> AttackSuccess:
    """Draws with and without the trigger and counts hits; see :class:`AttackSuccess`.

    Args:
        shift: added to the starting noise, (C, H, W).
        sampler: a name of ``core.sampling.SAMPLERS``.
    """
    rates = [
        float(target.hits(draw(model, s, sampler=sampler, steps=steps, n=n, seed=seed)).float().mean())
        for s in (shift, None)
    ]
    name = f"{sampler}, {steps} steps"
    return AttackSuccess(rates[0], rates[1], target.threshold, n, name, seed)
