"""The VQ-VAE of a latent diffusion model: its config and headers, before torch is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backdrift.io.configs import METADATA_KEYS, check_class
from backdrift.io.errors import CheckpointError, NotScannable, shown
from backdrift.io.inventory import Inventory
from backdrift.io.settings import FLAG, TEXT, Rule, check_settings, list_of, number, one_of, optional, whole
from backdrift.io.weights import Bounds, Found, WeightPlan, find_weights

LATENT_PIPELINE = "LDMPipeline"
CODEC_FOLDER = "vqvae"
CODEC_CONFIG = f"{CODEC_FOLDER}/config.json"
MAX_IMAGE_SIZE = 2048

_RULES: dict[str, Rule] = {
    "in_channels": whole(1, 4),
    "out_channels": whole(1, 4),
    "down_block_types": list_of(TEXT),
    "up_block_types": list_of(TEXT),
    "block_out_channels": list_of(whole(1, 16384)),
    "layers_per_block": whole(1, 64),
    "act_fn": one_of("silu", "swish", "mish", "gelu", "relu"),
    "latent_channels": whole(1, 256),
    "sample_size": whole(1, 4096),
    "num_vq_embeddings": whole(1, 1 << 20),
    "norm_num_groups": whole(1, 16384),
    "vq_embed_dim": optional(whole(1, 4)),
    "scaling_factor": number(1e-4, 1e4),
    "norm_type": one_of("group", "spatial"),
    "mid_block_add_attention": FLAG,
    "lookup_from_codebook": FLAG,
    "force_upcast": FLAG,
}
VQ_KEYS = frozenset(_RULES)
_BLOCKS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")


@dataclass(frozen=True)
class CodecPlan:
    """What turns latents into images, as :func:`backdrift.io.codec.load_codec` will build it.

    Args:
        config: keyword arguments of ``VQModel``.
        weights: the set of weights that diffusers loads by default.
        latent_shape: (C, H, W) of what the denoiser draws.
        image_shape: (C, H, W) of what a user sees.
    """

    config: dict[str, Any]
    weights: WeightPlan
    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]


def parse_codec(
    config: dict[str, Any], latent_shape: tuple[int, int, int], name: str
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Checks the config of a ``VQModel``.

    Args:
        config: the parsed JSON.
        latent_shape: (C, H, W) of what the denoiser draws.
        name: what to call the file in a message.

    Returns:
        The keyword arguments of ``VQModel``, and the shape (C, H, W) of an image.

    Raises:
        CheckpointError: another class, an unknown key, a value out of bounds, or latents of another number
            of channels than the denoiser's.
        NotScannable: blocks or a normalisation that latent diffusion models do not have.
    """
    check_class(config, ("VQModel",), name)
    known = {key: value for key, value in config.items() if key not in METADATA_KEYS}
    check_settings(known, _RULES, "VQModel", name)
    if known.get("norm_type", "group") != "group":
        raise NotScannable(f"{name}: norm_type {shown(known['norm_type'])} is not covered")
    blocks = {*known.get("down_block_types", ()), *known.get("up_block_types", ())}.difference(_BLOCKS)
    if blocks:
        raise NotScannable(f"{name}: block {shown(min(blocks))} is not covered")
    levels = {
        len(known.get(key, (0,))) for key in ("down_block_types", "up_block_types", "block_out_channels")
    }
    if len(levels) > 1:
        raise CheckpointError(f"{name}: blocks and block_out_channels differ in number", "BD206")
    if known.get("in_channels", 3) != known.get("out_channels", 3):
        raise CheckpointError(f"{name}: in_channels and out_channels must be equal", "BD206")
    channels, side, _ = latent_shape
    drawn = known.get("vq_embed_dim") or known.get("latent_channels", 3)
    if drawn != channels:
        raise CheckpointError(
            f"{name}: the codebook has {drawn} dimensions, but the unet draws {channels} channels", "BD206"
        )
    side <<= levels.pop() - 1
    if side > MAX_IMAGE_SIZE:
        raise CheckpointError(
            f"{name}: images of {side} pixels a side; at most {MAX_IMAGE_SIZE} are scanned", "BD206"
        )
    return known, (known.get("out_channels", 3), side, side)


def check_parts(index: Mapping[str, Any]) -> None:
    """Whether the parts that a pipeline index names are those of an unconditional latent model.

    Raises:
        NotScannable: they are of a kind of latent model that is not covered.
        CheckpointError: they are something else.
    """
    for part, covered, other in (
        ("unet", "UNet2DModel", "UNet2DConditionModel"),
        (CODEC_FOLDER, "VQModel", "AutoencoderKL"),
    ):
        if index[part] == ["diffusers", other]:
            raise NotScannable(
                f"model_index.json: {LATENT_PIPELINE} with {other} is not covered; unconditional ones with "
                "UNet2DModel and VQModel are"
            )
        if index[part] != ["diffusers", covered]:
            raise CheckpointError(
                f"model_index.json: {part} must be {covered} of diffusers, not {shown(index[part])}; "
                "do not trust it",
                "BD203",
            )


def plan_codec(
    inventory: Inventory,
    config: dict[str, Any],
    latent_shape: tuple[int, int, int],
    denoiser: Found,
    bounds: Bounds,
    converted: Mapping[str, Path] | None,
) -> tuple[CodecPlan, Found]:
    """The VQ-VAE by the one set of weights that loaders take unasked; others beside it are not used.

    Args:
        config: the parsed ``CODEC_CONFIG``.
        denoiser: which is within the bounds by itself, and has to be together with the VQ-VAE.
        converted: see :func:`backdrift.io.weights.find_weights`.

    Raises:
        CheckpointError: as :func:`parse_codec` and :func:`backdrift.io.weights.find_weights`.
        NotScannable: likewise.
    """
    known, image_shape = parse_codec(config, latent_shape, CODEC_CONFIG)
    found = find_weights(inventory, CODEC_FOLDER, bounds, converted)
    weights = found.candidates[0]
    largest = max(denoiser.candidates, key=lambda candidate: candidate.parameters)
    parameters = largest.parameters + weights.parameters
    size = sum(max(t.end for t in file.tensors) for file in (*largest.files, *weights.files))
    if parameters > bounds.parameters or size > bounds.size:
        raise CheckpointError(
            f"{shown(largest.name)} and {shown(weights.name)} hold {parameters} values in {size} bytes; "
            f"at most {bounds.parameters} values (--max-params) and {bounds.size} bytes (--max-size) are "
            "scanned",
            "BD306",
        )
    used = frozenset({CODEC_CONFIG, weights.name, *(file.name for file in weights.files)})
    return CodecPlan(known, weights, latent_shape, image_shape), replace(found, used=used)


def least_tensors(config: dict[str, Any]) -> int:
    """Fewer than any ``VQModel`` of that config has: 8 in every layer of a block, twice."""
    layers: int = config.get("layers_per_block", 1)
    return 16 * len(config.get("block_out_channels", (0,))) * layers
