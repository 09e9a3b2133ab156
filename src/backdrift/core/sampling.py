"""One sampling loop over the stock diffusers schedulers, and differentiable steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from backdrift.core.model import Denoiser
from backdrift.core.randomness import SampleGenerator
from backdrift.core.schedule import NoiseSchedule

SamplerName = Literal["ddpm", "ddim", "dpm-solver++", "unipc", "dpm-solver", "heun", "pndm", "deis"]
PostStep = Callable[[Tensor, int], Tensor]

SAMPLERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"timestep_spacing": "trailing", "variance_type": "fixed_small"}),
    "ddim": (DDIMScheduler, {"timestep_spacing": "trailing"}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
    "dpm-solver": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "heun": (HeunDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "pndm": (PNDMScheduler, {"timestep_spacing": "trailing", "set_alpha_to_one": True}),
    "deis": (DEISMultistepScheduler, {}),
}
"""Name to stock scheduler and the options that differ from its defaults."""

ODE_SAMPLERS: tuple[SamplerName, ...] = (
    "ddim",
    "dpm-solver++",
    "unipc",
    "dpm-solver",
    "heun",
    "pndm",
    "deis",
)
"""Those that draw no fresh noise: all solve the same ODE."""

_SEVERAL_CALLS = ("heun", "pndm")


def make_scheduler(name: str, schedule: NoiseSchedule, *, clip_x0: bool = False) -> Any:
    """A stock diffusers scheduler for ``schedule`` that predicts noise.

    Args:
        name: one of ``SAMPLERS``.
        clip_x0: clamp the predicted x_0 to [-1, 1] at every step (``clip_sample`` of diffusers;
            DDPM and DDIM only). Off by default: it disarms SDE backdoors.

    Raises:
        ValueError: unknown sampler, or clipping asked of a sampler that has none.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    kind, options = SAMPLERS[name]
    if kind in (DDPMScheduler, DDIMScheduler):
        options = {**options, "clip_sample": clip_x0}
    elif clip_x0:
        raise ValueError(f"{name} has no x_0 clipping; use ddpm or ddim, or a post-step hook")
    with warnings.catch_warnings():
        # diffusers announces to drop dpmsolver some day; an attack was published for it
        warnings.filterwarnings("ignore", message=".*algorithm_types dpmsolver", category=FutureWarning)
        return kind(
            num_train_timesteps=len(schedule),
            trained_betas=schedule.betas.tolist(),
            prediction_type="epsilon",
            **options,
        )


def _prepared(name: str, schedule: NoiseSchedule, steps: int, clip_x0: bool) -> Any:
    """A scheduler with its timesteps set, or one line on why it cannot take that many."""
    length = len(schedule)
    if steps < 1 or steps > length:
        raise ValueError(f"steps must lie in 1..{length}, not {steps}")
    if name == "pndm" and (steps < 4 or length % steps):
        raise ValueError(f"pndm takes a number of steps from 4 that divides {length}, not {steps}")
    scheduler = make_scheduler(name, schedule, clip_x0=clip_x0)
    if name in ("ddpm", "heun"):
        scheduler.set_timesteps(timesteps=strided_timesteps(schedule, steps))
        return scheduler
    scheduler.set_timesteps(steps)
    if name not in ("ddim", "pndm") and len(scheduler.timesteps.unique()) < steps:
        raise ValueError(f"{name} takes at most {length - 1} of {length} steps: {steps} repeat a timestep")
    return scheduler


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    *,
    sampler: str = "ddpm",
    steps: int = 50,
    generator: SampleGenerator | None = None,
    clip_x0: bool = False,
    post_step: PostStep | None = None,
) -> Tensor:
    """Runs a stock scheduler from a given starting tensor.

    DDPM, DDIM and Heun take :func:`strided_timesteps`, and DDIM takes :func:`ddim_step`: the stock
    step goes to ``t - T // steps``, which is not the next timestep unless ``steps`` divides T.

    Every sampler starts from the same ``x_T``. One that works on a scaled state (Heun on ``x_t / A_t``)
    starts from the state whose first network input is ``x_T``; the stock ``init_noise_sigma`` would
    shrink it by S_T. ``dpm-solver`` stops at timestep 0, as the stock one does: S_0 of noise is left.

    Args:
        denoiser: predicts noise.
        x_T: starting tensor, shape (B, C, H, W); noise, or noise plus a trigger.
        steps: in ``1..len(schedule)``; the network calls per sample, but for Heun (``2 steps - 1``)
            and PNDM (``steps + 9``, and ``steps`` must be 4 or more and divide ``len(schedule)``). The
            stock spacing of the multistep solvers ends at ``len(schedule) - 1``.
        generator: the fresh noise of DDPM, one stream per sample. Required for ``ddpm``.
        clip_x0: see :func:`make_scheduler`.
        post_step: called as ``post_step(x, timestep)`` after every step; its result goes on. The
            paper's inference-time clipping is ``lambda x, t: x.clamp(-1, 1)``. Not for Heun and PNDM,
            whose states between two calls of a step are no samples.

    Returns:
        x_0, shape of ``x_T``, not clamped.

    Raises:
        ValueError: unknown sampler, a number of steps it cannot take, no generator for ``ddpm``, or a
            hook that the sampler does not have.
    """
    scheduler = _prepared(sampler, schedule, steps, clip_x0)
    if sampler == "ddpm" and generator is None:
        raise ValueError("ddpm draws fresh noise at every step: pass a SampleGenerator")
    if post_step is not None and sampler in _SEVERAL_CALLS:
        raise ValueError(f"{sampler} calls the network several times per step: no post-step hook")
    options = {"generator": generator.generators} if sampler == "ddpm" and generator else {}
    kept = [int(t) for t in scheduler.timesteps]
    if sampler == "ddim":
        kept = strided_timesteps(schedule, steps)
    x: Tensor = x_T / scheduler.scale_model_input(torch.ones((), device=x_T.device), kept[0])
    for t, previous in zip(kept, [*kept[1:], -1], strict=True):
        noise_pred = denoiser(scheduler.scale_model_input(x, t), t)
        if sampler == "ddim":
            x = ddim_step(schedule, noise_pred, x, t, previous, clip_x0=clip_x0)
        else:
            x = scheduler.step(noise_pred, t, x, return_dict=False, **options)[0]
        if post_step is not None:
            x = post_step(x, t)
    return x


def strided_timesteps(schedule: NoiseSchedule, steps: int) -> list[int]:
    """Descending timesteps of ``trailing`` spacing, from T-1: what DDPM, DDIM and Heun keep here.

    Deviation: stock diffusers lets rounding add the timestep -1 for some numbers of steps (29 of 100,
    61 of 1000), from where a sample ends in noise; here there are always ``steps`` of them.
    """
    scheduler = make_scheduler("ddim", schedule)
    scheduler.set_timesteps(steps)
    return [int(t) for t in scheduler.timesteps[:steps]]


def ddim_step(
    schedule: NoiseSchedule,
    noise_pred: Tensor,
    x_t: Tensor,
    t: int,
    previous: int,
    eta: float = 0.0,
    fresh: Tensor | None = None,
    clip_x0: bool = False,
) -> Tensor:
    """One step of DDIM (arXiv 2010.02502, equation 12), differentiable; eta = 1 is DDPM.

    Args:
        previous: timestep to go to; -1 is x_0.
        fresh: standard normal noise, needed when ``eta > 0``.
        clip_x0: clamp the predicted x_0 to [-1, 1]; the noise prediction stays, as in diffusers.
    """
    abar = float(schedule.alphas_cumprod[t])
    abar_p = float(schedule.alphas_cumprod[previous]) if previous >= 0 else 1.0
    x_0 = (x_t - math.sqrt(1 - abar) * noise_pred) / math.sqrt(abar)
    x_0 = x_0.clamp(-1, 1) if clip_x0 else x_0
    sigma = eta * math.sqrt((1 - abar_p) / (1 - abar) * (1 - abar / abar_p))
    x = math.sqrt(abar_p) * x_0 + math.sqrt(max(1 - abar_p - sigma**2, 0.0)) * noise_pred
    return x if fresh is None or sigma == 0 else x + sigma * fresh


def differentiable_sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    timesteps: Sequence[int],
    *,
    eta: float = 0.0,
    generator: SampleGenerator | None = None,
    clip_x0: bool = False,
) -> list[Tensor]:
    """States ``[x_{t_0}, x_{t_1}, ..., x_0]`` of a DDIM chain, with gradients through every step.

    Args:
        timesteps: descending; the first is the timestep of ``x_T``.
        eta: 0 is DDIM, 1 is DDPM on that stride (then ``generator`` is required).
        clip_x0: clamp the predicted x_0 to [-1, 1] at every step; no gradient passes where it does.
    """
    states = [x_T]
    for t, previous in zip(timesteps, [*timesteps[1:], -1], strict=True):
        fresh = None
        if eta > 0:
            if generator is None:
                raise ValueError("eta > 0 draws fresh noise: pass a SampleGenerator")
            fresh = generator.normal(x_T.shape[1:], x_T.device)
        noise_pred = denoiser(states[-1], t)
        states.append(ddim_step(schedule, noise_pred, states[-1], t, previous, eta, fresh, clip_x0))
    return states
