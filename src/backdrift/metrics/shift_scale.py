"""The measured trigger-shift scale: what a network adds to its noise prediction per unit of trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator, generator
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import Trigger
from backdrift.metrics.bootstrap import Mean
from backdrift.metrics.rates import Estimate


@dataclass(frozen=True)
class ScaleAt:
    """One timestep of the curve.

    Args:
        theory: C_t of the family.
        measured: ``mean <eps_hat - eps, s> / |s|^2`` with its bootstrap interval.
    """

    timestep: int
    theory: float
    measured: Estimate


@torch.no_grad()
def shift_scale(
    model: DiffusionModel,
    family: ShiftFamily,
    trigger: Trigger,
    target: Tensor,
    timesteps: Sequence[int],
    *,
    images: Tensor | None = None,
    noise_scale: Tensor | None = None,
    n: int = 128,
    seed: int = 0,
) -> list[ScaleAt]:
    """Feeds ``A_t y + rho_t R + S_t gamma eps`` and projects ``eps_hat - eps`` on the mean of R.

    A network at the optimum of its poisoned loss gives C_t (the theory's equation (0.1); lambda_t of
    PureDiffusion, arXiv 2502.19047). A clean one denoises: it reads the shift as noise near T and as
    image below, and gives neither.

    Args:
        trigger: as planted.
        target: y, (C, H, W), or a set (M, C, H, W) of which every sample gets one.
        images: clean images (N, C, H, W); with them R is that of training rows, without them the
            shift of inference. The two differ for composite triggers alone.
        noise_scale: gamma, broadcastable to (C, H, W); 1 by default.
        n: samples per timestep.

    Raises:
        ValueError: the trigger is zero.
    """
    shape, count = model.sample_shape, len(model.schedule)
    fresh = SampleGenerator(seed, n, "shift-scale")
    targets = target if target.ndim == 4 else target[None]
    aim = torch.randint(len(targets), (n,), generator=generator(seed, "aim", n))
    shift = trigger.shift.expand(n, *shape)
    if images is not None:
        rows = torch.randint(len(images), (n,), generator=generator(seed, "rows", n))
        shift = trigger.training_shift(images[rows])
    direction = shift.mean(0)
    if not bool(direction.any()):
        raise ValueError("the trigger is zero: it has no scale")
    gamma = 1.0 if noise_scale is None else noise_scale
    found = []
    for t in timesteps:
        if not 0 <= t < count:
            raise ValueError(f"a timestep lies in 0..{count - 1}, not {t}")
        noise, at = fresh.normal(shape), torch.full((n,), t)
        x_t, _ = family.poisoned_pair(model.schedule, targets[aim], shift, noise, at, gamma)
        response = model(x_t.to(model.device), at.to(model.device)).cpu() - noise
        scales = (response * direction).flatten(1).sum(1) / direction.square().sum()
        mean = Mean(seed)
        mean.update(scales)
        found.append(ScaleAt(t, float(family.c[t]), mean.compute()))
    return found
