"""Structural similarity of images in [0, 1]."""

from __future__ import annotations

from torch import Tensor

from backdrift.core.trigger import unit
from backdrift.metrics.mse import matched

higher_is_better = True

DATA_RANGE = 1.0


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """SSIM of every image to its reference: shape (N,), at most 1, float64.

    Wang et al. 2004 as torchmetrics has it and BadDiffusion (arXiv 2212.05400) uses it: Gaussian
    window 11x11 of sigma 1.5, k1 .01, k2 .03. Both sides are mapped from [-1, 1] to [0, 1], and the
    data range is stated as 1, so that it does not depend on the images.

    Args:
        images: (N, C, H, W) in [-1, 1], at least 6x6 pixels; what lies outside is clamped.
        reference: (C, H, W), or one for every image (N, C, H, W); in [-1, 1] too.

    Raises:
        ValueError: shapes that do not match, or images that are too small.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    target = unit(matched(images, reference)).double()
    if min(images.shape[2:]) < 6:
        raise ValueError(f"SSIM needs images of at least 6x6 pixels, not {tuple(images.shape[2:])}")
    found = structural_similarity_index_measure(
        unit(images).double(), target, reduction="none", data_range=DATA_RANGE
    )
    assert isinstance(found, Tensor)
    return found.reshape(len(images))
