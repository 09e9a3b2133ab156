"""New, untrained networks: stock ``UNet2DModel`` of a size that a CPU can train."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import GaussianFourierProjection

from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule

Size = Literal["small", "ddpm-32", "ddpm-256"]
"""``ddpm-32`` is that of google/ddpm-cifar10-32, ``ddpm-256`` that of google/ddpm-ema-celebahq-256."""

_PUBLISHED: dict[str, tuple[int, tuple[int, ...], int]] = {
    "ddpm-32": (32, (128, 256, 256, 256), 1),
    "ddpm-256": (256, (128, 128, 256, 256, 512, 512), 4),
}
"""Pixels, channels of the levels, and the level with attention."""


def new_model(
    shape: tuple[int, int, int],
    *,
    seed: int,
    width: int = 24,
    groups: int = 8,
    exploding: bool = False,
    size: Size = "small",
) -> DiffusionModel:
    """An untrained noise-predicting UNet with the linear schedule of DDPM, T = 1000.

    The small one has three resolutions with attention in the middle one up to 16 pixels, four above, so
    that the deepest feature map is 4x4 or 8x8 at 16 to 64 pixels.

    Args:
        shape: (C, H, W) of a sample, H = W, a multiple of 8.
        seed: of the initial weights.
        width: channels of the first level, a multiple of 8.
        groups: of every group normalisation. Few channels per group lose the mean of an image, and
            with it the colour of RGB samples: 1 group for RGB, and see ``TrainingConfig.offset_noise``.
        exploding: a score-predicting one instead, with Fourier features of the noise level and T = 1000
            levels from .01 to those of Song et al. (arXiv 2011.13456) for CIFAR-10, 50 at (3, 32, 32), and
            for other shapes in proportion to the root of their number of pixels, as the largest distance
            between two images is: from far above it a small network does not find back.
        size: another than ``small`` is a published network, which has its own shape, width and groups.

    Raises:
        ValueError: a shape or width that the network cannot take.
    """
    if size != "small":
        return _published(size, shape, seed, exploding)
    channels, height, wide = shape
    if height != wide or height % 8 or width % 8 or min(height, width) < 8 or not 1 <= channels <= 4:
        raise ValueError(
            f"need square images, sizes and widths in multiples of 8, not {shape} and width {width}"
        )
    levels = [width, 2 * width, 2 * width] if height <= 16 else [width, width, 2 * width, 2 * width]
    down = ["DownBlock2D"] * len(levels)
    up = ["UpBlock2D"] * len(levels)
    down[-2], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
    network = _seeded(
        seed,
        sample_size=height,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=tuple(levels),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=groups,
        attention_head_dim=8,
        time_embedding_type="fourier" if exploding else "positional",
    )
    if not exploding:
        return DiffusionModel(network, NoiseSchedule.linear(), shape)
    fix_frequencies(network)
    highest = round(50 * math.sqrt(math.prod(shape) / (3 * 32 * 32)), 1)
    return DiffusionModel(network, NoiseSchedule.variance_exploding(sigma_max=highest), shape, "score")


def _published(size: Size, shape: tuple[int, int, int], seed: int, exploding: bool) -> DiffusionModel:
    pixels, levels, attended = _PUBLISHED[size]
    if shape != (3, pixels, pixels) or exploding:
        raise ValueError(
            f"{size} is a variance preserving network of shape {(3, pixels, pixels)}, not {shape}"
        )
    down = ["AttnDownBlock2D" if i == attended else "DownBlock2D" for i in range(len(levels))]
    network = _seeded(
        seed,
        sample_size=pixels,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=levels,
        down_block_types=tuple(down),
        up_block_types=tuple(block.replace("Down", "Up") for block in reversed(down)),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    return DiffusionModel(network, NoiseSchedule.linear(), shape)


def _seeded(seed: int, **settings: Any) -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**settings)


def fix_frequencies(network: UNet2DModel) -> None:
    """Makes the Fourier frequencies of a noise level a buffer: drawn once, and not trained."""
    features = network.time_proj
    if isinstance(features, GaussianFourierProjection):
        drawn = features.weight.detach()
        del features.weight
        features.register_buffer("weight", drawn)
