"""The two configs of a checkpoint, read through allow-lists and bounds before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from backdrift.io.errors import CheckpointError, NotScannable, shown
from backdrift.io.settings import (
    FLAG,
    TEXT,
    Rule,
    check_settings,
    is_int,
    is_number,
    list_of,
    number,
    one_of,
    optional,
    whole,
)

PredictionType = Literal["epsilon", "v_prediction", "sample"]

MAX_TIMESTEPS = 10_000

METADATA_KEYS = ("_class_name", "_diffusers_version", "_name_or_path", "_backdoor_notice")

CODE_KEYS = ("auto_map", "custom_pipeline", "quantization_config", "trust_remote_code")
"""Settings by which loaders fetch or run code."""

# What EMAModel of diffusers adds to the config of the averaged network.
EMA_KEYS = (
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
)  # fmt: skip

DOWN_BLOCKS = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SkipDownBlock2D",
    "AttnSkipDownBlock2D",
)
UP_BLOCKS = (
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
    "SkipUpBlock2D",
    "AttnSkipUpBlock2D",
)

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


@dataclass(frozen=True)
class SchedulePlan:
    """The forward process of a checkpoint; nothing of its sampler.

    Args:
        kind: a ``beta_schedule`` of diffusers, or ``trained_betas``.
        beta_start: in (0, 1); not used by ``squaredcos_cap_v2`` and ``trained_betas``.
        beta_end: likewise.
        timesteps: 2 to ``MAX_TIMESTEPS``.
        trained_betas: one beta in (0, 1) per timestep, or None.
    """

    kind: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "trained_betas"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    timesteps: int = 1000
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"

    def facts(self) -> dict[str, Any]:
        """What a report says about it; a table of betas is not repeated."""
        if self.kind in ("squaredcos_cap_v2", "trained_betas"):
            return {"betas": self.kind, "timesteps": self.timesteps}
        ends = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        return {"betas": self.kind, **ends, "timesteps": self.timesteps}


_UNET_RULES: dict[str, Rule] = {
    "sample_size": optional(
        Rule(lambda v: _image_size(v) is not None, "a size in 1..1024, or two equal ones")
    ),
    "in_channels": whole(1, 4),
    "out_channels": whole(1, 4),
    "center_input_sample": FLAG,
    "time_embedding_type": TEXT,
    "time_embedding_dim": optional(whole(1, 65536)),
    "freq_shift": whole(0, 1),
    "flip_sin_to_cos": FLAG,
    "down_block_types": list_of(TEXT),
    "mid_block_type": optional(TEXT),
    "up_block_types": list_of(TEXT),
    "block_out_channels": list_of(whole(1, 16384)),
    "layers_per_block": whole(1, 64),
    "mid_block_scale_factor": number(1e-3, 1e3),
    "downsample_padding": whole(0, 1),
    "downsample_type": one_of("conv", "resnet"),
    "upsample_type": one_of("conv", "resnet"),
    "dropout": number(0, 1),
    "act_fn": one_of("silu", "swish", "mish", "gelu", "relu"),
    "attention_head_dim": optional(whole(1, 16384)),
    "norm_num_groups": whole(1, 16384),
    "attn_norm_num_groups": optional(whole(1, 16384)),
    "norm_eps": number(1e-12, 1),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "add_attention": FLAG,
    "class_embed_type": optional(TEXT),
    "num_class_embeds": optional(whole(1, 1 << 20)),
    "num_train_timesteps": optional(whole(2, MAX_TIMESTEPS)),
}
UNET_KEYS = frozenset(_UNET_RULES)


def _image_size(value: Any) -> int | None:
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return value if is_int(value, 1, 1024) else None


def parse_network(config: dict[str, Any], name: str) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Checks the config of a ``UNet2DModel``.

    Args:
        config: the parsed JSON.
        name: what to call the file in a message.

    Returns:
        The keyword arguments of ``UNet2DModel``, and the sample shape (C, H, W).

    Raises:
        CheckpointError: another class, an unknown key, a value out of bounds.
        NotScannable: variance exploding, without a sample size, with classes that are no numbers, or
            with blocks that image models do not have.
    """
    check_class(config, ("UNet2DModel",), name)
    known = {key: value for key, value in config.items() if key not in (*METADATA_KEYS, *EMA_KEYS)}
    check_settings(known, _UNET_RULES, "UNet2DModel", name)
    _refuse_unsupported(known, name)
    size, channels = _image_size(known["sample_size"]), known.get("in_channels", 3)
    if channels != known.get("out_channels", 3):
        raise CheckpointError(f"{name}: in_channels and out_channels must be equal", "BD206")
    assert size is not None
    return known, (channels, size, size)


def _refuse_unsupported(config: dict[str, Any], name: str) -> None:
    if config.get("sample_size") is None:
        raise NotScannable(f"{name} has no sample_size; add the size of the model's images")
    if config.get("class_embed_type") is not None:
        raise NotScannable(f"{name}: class_embed_type is not covered; only num_class_embeds is")
    if config.get("time_embedding_type", "positional") not in ("positional", "learned"):
        raise NotScannable(f"{name}: only positional and learned time embeddings are covered")
    if config.get("mid_block_type", "UNetMidBlock2D") not in (None, "UNetMidBlock2D"):
        raise NotScannable(f"{name}: mid block {shown(config['mid_block_type'])} is not covered")
    blocks = {*config.get("down_block_types", ())}.difference(DOWN_BLOCKS)
    blocks |= {*config.get("up_block_types", ())}.difference(UP_BLOCKS)
    if blocks:
        raise NotScannable(f"{name}: block {shown(min(blocks))} is not covered")


def check_class(config: dict[str, Any], classes: tuple[str, ...], name: str) -> str:
    """The ``_class_name`` of a config, which must be text and one of ``classes``.

    Raises:
        CheckpointError: it is not.
    """
    kind = config.get("_class_name")
    if not isinstance(kind, str):
        raise CheckpointError(f"{name}: _class_name must be text, not {shown(kind)}", "BD204")
    if kind not in classes:
        raise CheckpointError(f"{name} is for {shown(kind)}, not {classes[0]}; do not trust it", "BD203")
    return kind


def check_scheduler_class(kind: Any, name: str) -> str:
    """``kind`` when it is a variance preserving scheduler of diffusers.

    Raises:
        NotScannable: another scheduler.
        CheckpointError: no scheduler at all.
    """
    if not isinstance(kind, str) or not kind.endswith("Scheduler"):
        raise CheckpointError(f"{name}: {shown(kind)} is no scheduler; do not trust it", "BD203")
    if kind not in VP_SCHEDULERS:
        raise NotScannable(
            f"{name}: {shown(kind)} is not covered; backdrift scans variance preserving schedules "
            "such as that of DDPMScheduler"
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


def _is_beta(value: Any) -> bool:
    return is_number(value, 0, 1) and 0 < value < 1


def _trained(value: Any, timesteps: int, name: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != timesteps or not all(map(_is_beta, value)):
        raise CheckpointError(f"{name}: trained_betas must be {timesteps} numbers in (0, 1)", "BD206")
    return tuple(float(beta) for beta in value)


def _bad(name: str, key: str, expected: str, value: Any) -> NoReturn:
    raise CheckpointError(f"{name}: {key} must be {expected}, not {shown(value)}", "BD206")
