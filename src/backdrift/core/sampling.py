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
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from backdrift.core.model import Denoiser
from backdrift.core.randomness import SampleGenerator
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import Solver

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

PREDICTOR_CORRECTOR = "score-sde-ve"
"""Sampler of variance exploding schedules alone: what ``ScoreSdeVePipeline`` runs."""

SNR = 0.075
"""Of its corrector: that of VillanDiffusion (arXiv 2306.06874) and of NCSN++ at 256 pixels."""

_SEVERAL_CALLS = ("heun", "pndm")


def usual_sampler(family: Solver | None, schedule: NoiseSchedule) -> str:
    """What a victim runs who uses the stock pipeline as it is; DDIM for an attack on ODE samplers."""
    if family == "ode":
        return "ddim"
    return PREDICTOR_CORRECTOR if schedule.exploding else "ddpm"


def make_scheduler(name: str, schedule: NoiseSchedule, *, clip_x0: bool = False) -> Any:
    """A stock diffusers scheduler for ``schedule`` that predicts noise.

    Args:
        name: one of ``SAMPLERS``, or ``PREDICTOR_CORRECTOR``.
        clip_x0: clamp the predicted x_0 to [-1, 1] at every step (``clip_sample`` of diffusers;
            DDPM and DDIM only). Off by default: it disarms SDE backdoors.

    Raises:
        ValueError: unknown sampler, one that is not for this schedule, or clipping asked of a sampler
            that has none.
    """
    if name == PREDICTOR_CORRECTOR:
        return _exploding_scheduler(schedule, clip_x0)
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; known: {', '.join([*SAMPLERS, PREDICTOR_CORRECTOR])}")
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


def _exploding_scheduler(schedule: NoiseSchedule, clip_x0: bool) -> ScoreSdeVeScheduler:
    if not schedule.exploding:
        raise ValueError(f"{PREDICTOR_CORRECTOR} is for variance exploding models; this one is none")
    if clip_x0:
        raise ValueError(f"{PREDICTOR_CORRECTOR} has no x_0 clipping; use ddpm or ddim")
    first, last = (2 * float(schedule.levels[end]) for end in (0, -1))
    return ScoreSdeVeScheduler(len(schedule), snr=SNR, sigma_min=first, sigma_max=last)


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
            stock spacing of the multistep solvers ends at ``len(schedule) - 1``. ``score-sde-ve`` makes
            two calls a step and takes 2 steps or more.
        generator: the fresh noise, one stream per sample. Required for ``ddpm`` and ``score-sde-ve``.
        clip_x0: see :func:`make_scheduler`.
        post_step: called as ``post_step(x, timestep)`` after every step; its result goes on. The
            paper's inference-time clipping is ``lambda x, t: x.clamp(-1, 1)``. Not for Heun and PNDM,
            whose states between two calls of a step are no samples.

    Returns:
        x_0, shape of ``x_T``, not clamped.

    Raises:
        ValueError: unknown sampler, a number of steps it cannot take, no generator for one that needs it,
            or a hook that the sampler does not have.
    """
    if sampler in ("ddpm", PREDICTOR_CORRECTOR) and generator is None:
        raise ValueError(f"{sampler} draws fresh noise at every step: pass a SampleGenerator")
    if sampler == PREDICTOR_CORRECTOR:
        return _predict_and_correct(denoiser, schedule, x_T, steps, generator, post_step, clip_x0)
    if post_step is not None and sampler in _SEVERAL_CALLS:
        raise ValueError(f"{sampler} calls the network several times per step: no post-step hook")
    scheduler = _prepared(sampler, schedule, steps, clip_x0)
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


def _predict_and_correct(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    steps: int,
    generator: SampleGenerator | None,
    post_step: PostStep | None,
    clip_x0: bool,
) -> Tensor:
    """The stock predictor-corrector on ``x_t / alpha_t``, which has the noise 2 levels beside [-1, 1].

    Both of its steps are the same there as in [0, 1]. The timesteps are those of training nearest to the
    stock's, which lie between them unless all are kept. Stock as well: one step of the corrector for the
    whole batch, so that a sample depends a little on the others, and too much noise in few, large steps.

    The label ``eps + C_t r`` is what the predictor needs; the corrector would need ``eps``, and pulls an
    SDE backdoor towards its edge. With ``k = 2 snr^2`` and ``d = level_t / level_p - 1`` a poisoned state
    keeps ``(d + k / 2) / (d + k)`` of its shift, and the edge is at about 1/2.
    """
    if not 2 <= steps <= len(schedule):
        raise ValueError(f"steps of {PREDICTOR_CORRECTOR} lie in 2..{len(schedule)}, not {steps}")
    assert generator is not None
    scheduler, fresh = make_scheduler(PREDICTOR_CORRECTOR, schedule, clip_x0=clip_x0), generator.generators
    kept = torch.linspace(0, len(schedule) - 1, steps, dtype=torch.float64).round().long()
    scheduler.set_timesteps(steps)
    scheduler.discrete_sigmas = 2 * schedule.levels[kept].float()
    state, mean = x_T / float(schedule.alpha[-1]), x_T
    for index in reversed(range(steps)):
        t = int(kept[index])
        alpha, level = float(schedule.alpha[t]), 2 * float(schedule.levels[t])
        for _ in range(scheduler.config.correct_steps):
            score = -denoiser(alpha * state, t) / level
            state = scheduler.step_correct(score, state, generator=fresh).prev_sample
        score = -denoiser(alpha * state, t) / level
        inside = torch.tensor((index + 0.5) / (steps - 1))  # the stock rounds down to the index
        state, mean = scheduler.step_pred(score, inside, state, generator=fresh, return_dict=False)
        if post_step is not None and index:
            after = float(schedule.alpha[kept[index - 1]])
            state = post_step(after * state, t) / after
    return mean if post_step is None else post_step(mean, 0)


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
