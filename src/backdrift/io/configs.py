"""The config of a network, read through an allow-list and bounds before anything is built."""

from __future__ import annotations

from typing import Any

from backdrift.io.errors import CheckpointError, NotScannable, shown
from backdrift.io.settings import (
    FLAG,
    TEXT,
    Rule,
    check_settings,
    is_int,
    list_of,
    number,
    one_of,
    optional,
    whole,
)

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
    "norm_num_groups": optional(whole(1, 16384)),
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
        NotScannable: without a sample size, with classes that are no numbers, with another embedding of
            the time, or with blocks that image models do not have.
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
