"""How alike the images of a set are, and how smooth: Elijah's two features."""

from __future__ import annotations

from torch import Tensor

from backdrift.core.trigger import unit

TRIMMED = 4


def uniformity(distances: Tensor) -> float:
    """How different the images of a set are, without the outliers; 0 for one image.

    Of each row the ``TRIMMED`` smallest distances (the zero to itself among them) and as many of the
    largest are left out and the rest averaged; of these averages likewise.

    Args:
        distances: between all pairs, (N, N), N at least 9.

    Raises:
        ValueError: fewer than 9 images, of which nothing would be left, or not a square.
    """
    count = len(distances)
    if distances.shape != (count, count) or count <= 2 * TRIMMED:
        raise ValueError(
            f"uniformity takes a square of distances of at least {2 * TRIMMED + 1} images, "
            f"not {tuple(distances.shape)}"
        )
    kept = slice(TRIMMED, count - TRIMMED)
    rows = distances.double().sort(dim=1).values[:, kept].mean(1)
    return float(rows.sort().values[kept].mean())


def total_variation(images: Tensor) -> float:
    """Mean over images of the sum of absolute differences of neighbours, over all channels.

    The anisotropic kind, in units of [0, 1]; it grows with the number of pixels.

    Args:
        images: (N, C, H, W) in [-1, 1]; what lies outside is clamped.
    """
    pixels = unit(images).double()
    down, along = pixels.diff(dim=2).abs().sum((1, 2, 3)), pixels.diff(dim=3).abs().sum((1, 2, 3))
    return float((down + along).mean())
