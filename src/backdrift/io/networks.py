"""New, untrained networks: stock ``UNet2DModel`` of a size that a CPU can train."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import GaussianFourierProjection

from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule


def new_model(
    shape: tuple[int, int, int],
    *,
    seed: int,
    width: int = 24,
    groups: int = 8,
    exploding: bool = False,
) -> DiffusionModel:
    """An untrained noise-predicting UNet with the linear schedule of DDPM, T = 1000.

    Three resolutions with attention in the middle one up to 16 pixels, four above, so that the
    deepest feature map is 4x4 or 8x8 at 16 to 64 pixels.

    Args:
        shape: (C, H, W) of a sample, H = W, a multiple of 8.
        seed: of the initial weights.
        width: channels of the first level, a multiple of 8.
        groups: of every group normalisation. Few channels per group lose the mean of an image, and
            with it the colour of RGB samples: 2 groups for RGB.
        exploding: a score-predicting one instead, with Fourier features of the noise level and the
            levels of Song et al. (arXiv 2011.13456) for CIFAR-10, .01 to 50, T = 1000.

    Raises:
        ValueError: a shape or width that the network cannot take.
    """
    channels, height, wide = shape
    if height != wide or height % 8 or width % 8 or min(height, width) < 8 or not 1 <= channels <= 4:
        raise ValueError(
            f"need square images, sizes and widths in multiples of 8, not {shape} and width {width}"
        )
    levels = [width, 2 * width, 2 * width] if height <= 16 else [width, width, 2 * width, 2 * width]
    down = ["DownBlock2D"] * len(levels)
    up = ["UpBlock2D"] * len(levels)
    down[-2], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(
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
    return DiffusionModel(network, NoiseSchedule.variance_exploding(), shape, "score")


def fix_frequencies(network: UNet2DModel) -> None:
    """Makes the Fourier frequencies of a noise level a buffer: drawn once, and not trained."""
    features = network.time_proj
    if isinstance(features, GaussianFourierProjection):
        drawn = features.weight.detach()
        del features.weight
        features.register_buffer("weight", drawn)
