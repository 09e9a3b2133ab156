"""The config of a network, read through an allow-list and bounds before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backdrift.io.errors import CheckpointError, NotScannable, shown

MAX_BLOCKS = 16
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


@dataclass(frozen=True)
class _Rule:
    accepts: Callable[[Any], bool]
    expected: str


def is_int(value: Any, low: int, high: int) -> bool:
    """Whether it is a whole number in ``low..high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether it is a number in ``low..high``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _int(low: int, high: int) -> _Rule:
    return _Rule(lambda v: is_int(v, low, high), f"a whole number in {low}..{high}")


def _number(low: float, high: float) -> _Rule:
    return _Rule(lambda v: is_number(v, low, high), f"a number in {low:g}..{high:g}")


def _one_of(*values: Any) -> _Rule:
    return _Rule(lambda v: isinstance(v, str) and v in values, f"one of {', '.join(map(str, values))}")


def _optional(rule: _Rule) -> _Rule:
    return _Rule(lambda v: v is None or rule.accepts(v), f"null or {rule.expected}")


def _list_of(rule: _Rule) -> _Rule:
    return _Rule(
        lambda v: isinstance(v, list) and 1 <= len(v) <= MAX_BLOCKS and all(map(rule.accepts, v)),
        f"a list of 1..{MAX_BLOCKS} items, each {rule.expected}",
    )


_FLAG = _Rule(lambda v: isinstance(v, bool), "true or false")
_TEXT = _Rule(lambda v: isinstance(v, str) and len(v) <= 64, "a short text")

_UNET_RULES: dict[str, _Rule] = {
    "sample_size": _optional(
        _Rule(lambda v: _image_size(v) is not None, "a size in 1..1024, or two equal ones")
    ),
    "in_channels": _int(1, 4),
    "out_channels": _int(1, 4),
    "center_input_sample": _FLAG,
    "time_embedding_type": _TEXT,
    "time_embedding_dim": _optional(_int(1, 65536)),
    "freq_shift": _int(0, 1),
    "flip_sin_to_cos": _FLAG,
    "down_block_types": _list_of(_TEXT),
    "mid_block_type": _optional(_TEXT),
    "up_block_types": _list_of(_TEXT),
    "block_out_channels": _list_of(_int(1, 16384)),
    "layers_per_block": _int(1, 64),
    "mid_block_scale_factor": _number(1e-3, 1e3),
    "downsample_padding": _int(0, 1),
    "downsample_type": _one_of("conv", "resnet"),
    "upsample_type": _one_of("conv", "resnet"),
    "dropout": _number(0, 1),
    "act_fn": _one_of("silu", "swish", "mish", "gelu", "relu"),
    "attention_head_dim": _optional(_int(1, 16384)),
    "norm_num_groups": _optional(_int(1, 16384)),
    "attn_norm_num_groups": _optional(_int(1, 16384)),
    "norm_eps": _number(1e-12, 1),
    "resnet_time_scale_shift": _one_of("default", "scale_shift"),
    "add_attention": _FLAG,
    "class_embed_type": _optional(_TEXT),
    "num_class_embeds": _optional(_int(1, 1 << 20)),
    "num_train_timesteps": _optional(_int(2, MAX_TIMESTEPS)),
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
        NotScannable: without a sample size, with classes that are no numbers, with another embedding of
            the time, or with blocks that image models do not have.
    """
    check_class(config, ("UNet2DModel",), name)
    known = {key: value for key, value in config.items() if key not in (*METADATA_KEYS, *EMA_KEYS)}
    for key, value in known.items():
        if key not in UNET_KEYS:
            raise CheckpointError(f"{name}: UNet2DModel has no setting {shown(key)}", "BD205")
        rule = _UNET_RULES[key]
        if not rule.accepts(value):
            raise CheckpointError(f"{name}: {key} must be {rule.expected}, not {shown(value)}", "BD206")
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
    if config.get("time_embedding_type", "positional") not in ("positional", "learned", "fourier"):
        raise NotScannable(f"{name}: only positional, learned and fourier time embeddings are covered")
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
