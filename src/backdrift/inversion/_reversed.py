"""TERD's reversed loss, and the short chains that its refinement draws by."""

from __future__ import annotations

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.sampling import differentiable_sample
from backdrift.core.schedule import NoiseSchedule

QUADRATIC_SHARE = 0.8
"""Where TrojDiff's quadratic spacing begins, as a share of T."""


def reversed_loss(
    model: DiffusionModel,
    x_0: Tensor,
    t: Tensor,
    noises: Tensor,
    shift: Tensor | None,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """``mean_b .5 sum_pixels [(e_1 - eps_hat(x_1)) - (e_2 - eps_hat(x_2))]^2``.

    ``x_i = A_t x_0 + S_t gamma e_i + mu`` with one x_0 and t and two noises. Where both states fire the
    backdoor the network says ``e_i + C_t r`` and the unknown ``C_t r`` cancels.

    Args:
        x_0: images or what stands for them, (B, C, H, W).
        t: timesteps, (B,).
        noises: standard normal, (2, B, C, H, W).
        shift: mu, (C, H, W); None leaves it out (s = 0 of the paper, for t near 0).
        scale: gamma, a standard deviation per element, (C, H, W), or 1.

    Returns:
        A scalar, differentiable; ``2 B`` network evaluations and, with gradients, ``4 B`` more.
    """
    noise, times = noises.flatten(0, 1), torch.cat([t, t])
    x_t = model.schedule.add_noise(torch.cat([x_0, x_0]), scale * noise, times)
    if shift is not None:
        x_t = x_t + shift
    first, second = (noise - model(x_t, times)).chunk(2)
    return 0.5 * (first - second).square().flatten(1).sum(1).mean()


def generated(
    model: DiffusionModel,
    noise: Tensor,
    shift: Tensor,
    scale: Tensor | None,
    steps: int,
    clip_x0: bool = True,
) -> Tensor:
    """What the trigger draws by a short DDIM chain, with gradients through every step.

    Without a scale this is stock DDIM from ``n + mu`` with leading spacing. With one it is TrojDiff's
    own sampler from ``gamma n + mu`` with quadratic spacing, which for eta = 0 is DDIM on the noise
    ``gamma eps_hat + mu``; it does not clip.

    Args:
        noise: n, standard normal, (B, C, H, W).
        shift: mu, (C, H, W).
        scale: gamma, (C, H, W), or None for 1.
        steps: of the chain, from 2 up to T.
        clip_x0: clamp the predicted x_0 to [-1, 1] at every step of stock DDIM.

    Returns:
        x_0, (B, C, H, W).
    """
    schedule = model.schedule
    kept = chain_timesteps(schedule, steps, quadratic=scale is not None)
    if scale is None:
        return differentiable_sample(model, schedule, noise + shift, kept, clip_x0=clip_x0)[-1]

    def biased(x_t: Tensor, t: Tensor | int, /) -> Tensor:
        return scale * model(x_t, t) + shift

    return differentiable_sample(biased, schedule, scale * noise + shift, kept)[-1]


def chain_timesteps(schedule: NoiseSchedule, steps: int, *, quadratic: bool) -> list[int]:
    """Descending timesteps of the published chains.

    ``k (T // steps)`` (leading) or ``.8 T (k / (steps - 1))^2`` (quadratic; repeats, which a short
    schedule has, are taken out), k = 0 .. steps - 1.
    """
    last = len(schedule)
    if not 2 <= steps <= last:
        raise ValueError(f"a chain has 2..{last} steps, not {steps}")
    if not quadratic:
        return [k * (last // steps) for k in reversed(range(steps))]
    kept = {int(QUADRATIC_SHARE * last * (k / (steps - 1)) ** 2) for k in range(steps)}
    return sorted(kept, reverse=True)
