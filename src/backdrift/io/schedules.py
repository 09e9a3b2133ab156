"""The config of a scheduler: the noise schedule that a network was trained on, read through bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from backdrift.io.configs import MAX_TIMESTEPS
from backdrift.io.errors import CheckpointError, NotScannable, shown
from backdrift.io.settings import is_int, is_number

PredictionType = Literal["epsilon", "v_prediction", "sample", "score"]

_HEUN_LIKE = (0.00085, 0.012)
_DDPM_LIKE = (0.0001, 0.02)
# Variance preserving schedulers and the beta_start, beta_end they assume when the config has none.
VP_SCHEDULERS: dict[str, tuple[float, float]] = {
    "DDIMScheduler": _DDPM_LIKE,
    "DDIMParallelScheduler": _DDPM_LIKE,
    "DDPMScheduler": _DDPM_LIKE,
    "DDPMParallelScheduler": _DDPM_LIKE,
    "DEISMultistepScheduler": _DDPM_LIKE,
    "DPMSolverMultistepScheduler": _DDPM_LIKE,
    "DPMSolverSinglestepScheduler": _DDPM_LIKE,
    "EulerAncestralDiscreteScheduler": _DDPM_LIKE,
    "EulerDiscreteScheduler": _DDPM_LIKE,
    "HeunDiscreteScheduler": _HEUN_LIKE,
    "KDPM2AncestralDiscreteScheduler": _HEUN_LIKE,
    "KDPM2DiscreteScheduler": _HEUN_LIKE,
    "LMSDiscreteScheduler": _DDPM_LIKE,
    "PNDMScheduler": _DDPM_LIKE,
    "UniPCMultistepScheduler": _DDPM_LIKE,
}

VE_SCHEDULER = "ScoreSdeVeScheduler"
_VE_TIMESTEPS, _VE_LEVELS = 2000, (0.01, 1348.0)
_LOWEST_LEVEL, _HIGHEST_LEVEL = 1e-4, 1e5


@dataclass(frozen=True)
class SchedulePlan:
    """The forward process of a checkpoint; nothing of its sampler.

    Args:
        kind: a ``beta_schedule`` of diffusers, ``trained_betas``, or ``exploding`` for geometric levels.
        beta_start: in (0, 1); not used by ``squaredcos_cap_v2`` and ``trained_betas``.
        beta_end: likewise.
        timesteps: 2 to ``MAX_TIMESTEPS``.
        trained_betas: one beta in (0, 1) per timestep, or None.
        levels: the lowest and the highest of ``exploding``, for images in [0, 1]; ascending.
    """

    kind: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "trained_betas", "exploding"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    timesteps: int = 1000
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    levels: tuple[float, float] = _VE_LEVELS

    def facts(self) -> dict[str, Any]:
        """What a report says about it; a table of betas is not repeated."""
        if self.kind == "exploding":
            ends = {"sigma_min": self.levels[0], "sigma_max": self.levels[1]}
            return {"levels": "geometric", **ends, "timesteps": self.timesteps}
        if self.kind in ("squaredcos_cap_v2", "trained_betas"):
            return {"betas": self.kind, "timesteps": self.timesteps}
        ends = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        return {"betas": self.kind, **ends, "timesteps": self.timesteps}


def check_scheduler_class(kind: Any, name: str) -> str:
    """``kind`` when it is a variance preserving scheduler of diffusers, or ``VE_SCHEDULER``.

    Raises:
        NotScannable: another scheduler.
        CheckpointError: no scheduler at all.
    """
    if not isinstance(kind, str) or not kind.endswith("Scheduler"):
        raise CheckpointError(f"{name}: {shown(kind)} is no scheduler; do not trust it", "BD203")
    if kind not in VP_SCHEDULERS and kind != VE_SCHEDULER:
        raise NotScannable(
            f"{name}: {shown(kind)} is not covered; backdrift scans variance preserving schedules "
            f"such as that of DDPMScheduler, and {VE_SCHEDULER}"
        )
    return kind


def parse_schedule(config: dict[str, Any], name: str, kind: str | None = None) -> SchedulePlan:
    """Reads the forward process out of a scheduler config and ignores the sampler settings in it.

    Args:
        config: the parsed JSON.
        name: what to call the file in a message.
        kind: the scheduler class that the pipeline names; its defaults fill what is missing.

    Raises:
        CheckpointError: a value out of bounds, or no scheduler.
        NotScannable: a scheduler, schedule or prediction type that is not covered.
    """
    own = check_scheduler_class(config.get("_class_name"), name)
    if VE_SCHEDULER in (own, kind):
        if kind not in (None, own):
            text = f"{name} is for {shown(own)}, not {shown(kind)}; do not trust it"
            raise CheckpointError(text, "BD203")
        return _exploding(config, name)
    start, end = VP_SCHEDULERS[kind or own]
    if config.get("rescale_betas_zero_snr", False) is not False:
        raise NotScannable(f"{name}: rescale_betas_zero_snr is not covered")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise NotScannable(f"{name}: prediction_type {shown(prediction)} is not covered")
    timesteps = config.get("num_train_timesteps", 1000)
    if not is_int(timesteps, 2, MAX_TIMESTEPS):
        _bad(name, "num_train_timesteps", f"a whole number in 2..{MAX_TIMESTEPS}", timesteps)
    trained = config.get("trained_betas")
    if trained is not None:
        betas = _trained(trained, timesteps, name)
        return SchedulePlan("trained_betas", start, end, timesteps, betas, prediction)
    schedule = config.get("beta_schedule", "linear")
    if schedule not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        raise NotScannable(f"{name}: beta_schedule {shown(schedule)} is not covered")
    limits = config.get("beta_start", start), config.get("beta_end", end)
    for key, value in zip(("beta_start", "beta_end"), limits, strict=True):
        if not _is_beta(value):
            _bad(name, key, "strictly between 0 and 1", value)
    first, last = map(float, limits)
    return SchedulePlan(schedule, first, last, timesteps, None, prediction)


def _exploding(config: dict[str, Any], name: str) -> SchedulePlan:
    timesteps = config.get("num_train_timesteps", _VE_TIMESTEPS)
    if not is_int(timesteps, 2, MAX_TIMESTEPS):
        _bad(name, "num_train_timesteps", f"a whole number in 2..{MAX_TIMESTEPS}", timesteps)
    ends = []
    for key, default in zip(("sigma_min", "sigma_max"), _VE_LEVELS, strict=True):
        value = config.get(key, default)
        if not is_number(value, _LOWEST_LEVEL, _HIGHEST_LEVEL):
            _bad(name, key, f"a number in {_LOWEST_LEVEL:g}..{_HIGHEST_LEVEL:g}", value)
        ends.append(float(value))
    if ends[1] < 2 * ends[0]:
        _bad(name, "sigma_max", f"at least twice sigma_min, {ends[0]:g}", ends[1])
    return SchedulePlan("exploding", 0, 0, timesteps, None, "score", (ends[0], ends[1]))


def _is_beta(value: Any) -> bool:
    return is_number(value, 0, 1) and 0 < value < 1


def _trained(value: Any, timesteps: int, name: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != timesteps or not all(map(_is_beta, value)):
        raise CheckpointError(f"{name}: trained_betas must be {timesteps} numbers in (0, 1)", "BD206")
    return tuple(float(beta) for beta in value)


def _bad(name: str, key: str, expected: str, value: Any) -> NoReturn:
    raise CheckpointError(f"{name}: {key} must be {expected}, not {shown(value)}", "BD206")
