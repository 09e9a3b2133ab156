"""Distances and similarities between all images of a set."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from backdrift.metrics.features import Extractor, RandomConv
from backdrift.metrics.lpips import Lpips


class PairDistance(Protocol):
    """Images (N, C, H, W) in [-1, 1] to their distances (N, N), float64, zero on the diagonal."""

    name: str

    def __call__(self, images: Tensor, /) -> Tensor:
        """Symmetric up to rounding; what lies outside [-1, 1] is clamped."""
        ...


class FeatureDistance:
    """Root mean square difference of the features of two images.

    Needs no download over :class:`backdrift.metrics.features.RandomConv`, and is no LPIPS: nobody
    fitted it to what people find alike. It carries the name of its extractor.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.name, self._extractor = extractor.name, extractor

    def __call__(self, images: Tensor, /) -> Tensor:
        """Distances (N, N) of images (N, C, H, W)."""
        features = self._extractor(images).double()
        apart = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        distances: Tensor = apart / features.shape[1] ** 0.5
        return distances


class LpipsDistance:
    """LPIPS of every image to every other, with weights of the user.

    Args:
        weights: see :class:`backdrift.metrics.lpips.Lpips`.

    Raises:
        ValueError: see there; when called, images smaller than 32x32.
    """

    name = Lpips.name

    def __init__(self, weights: str | Path) -> None:
        self._lpips = Lpips(weights)

    def __call__(self, images: Tensor, /) -> Tensor:
        """Distances (N, N) of images (N, C, H, W), C 1 or 3."""
        return torch.stack([self._lpips(images, image) for image in images])


def pair_distance(channels: int, lpips_weights: Path | None = None) -> PairDistance:
    """LPIPS when the user gives its weights, else ``random-conv``.

    Raises:
        ValueError: weights without the extra that reads them, or of another network.
    """
    return LpipsDistance(lpips_weights) if lpips_weights else FeatureDistance(RandomConv(channels))


def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine similarity over all pairs of rows of a set: shape (...,), in [-1, 1], float64.

    Args:
        features: (..., K, F), K at least 2. A row of zeros is orthogonal to every other.

    Raises:
        ValueError: fewer than two rows.
    """
    count = features.shape[-2]
    if count < 2:
        raise ValueError(f"a pair needs two images, not {count}")
    features = features.double()
    units = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    cosines = units @ units.transpose(-1, -2)
    pairs = cosines.sum((-1, -2)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    mean: Tensor = pairs / (count * (count - 1))
    return mean
