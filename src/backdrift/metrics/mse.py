"""Mean squared error of images in [0, 1]."""

from __future__ import annotations

from torch import Tensor

from backdrift.core.trigger import unit

higher_is_better = False


def mse(images: Tensor, reference: Tensor) -> Tensor:
    """MSE of every image to its reference, both mapped from [-1, 1] to [0, 1]: shape (N,), float64.

    The specificity metric of BadDiffusion (arXiv 2212.05400, section 4.2). Deviation: images are not
    rounded to 8 bits on the way.

    Args:
        images: (N, C, H, W) in [-1, 1]; what lies outside is clamped.
        reference: (C, H, W), or one for every image (N, C, H, W); in [-1, 1] too.

    Raises:
        ValueError: shapes that do not match.
    """
    return (unit(images).double() - unit(matched(images, reference)).double()).square().flatten(1).mean(1)


def matched(images: Tensor, reference: Tensor) -> Tensor:
    """``reference`` as (N, C, H, W), on the device of ``images``.

    Raises:
        ValueError: shapes that do not match.
    """
    if images.ndim != 4 or tuple(reference.shape) not in {tuple(images.shape), tuple(images.shape[1:])}:
        raise ValueError(f"images {tuple(images.shape)} against a reference {tuple(reference.shape)}")
    return reference.to(images).expand_as(images)
