"""What a data set is once it is loaded, and what every loader checks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from backdrift.core.randomness import generator

Shape = tuple[int, int, int]
OnBad = Literal["refuse", "skip"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory.

    Args:
        images: (N, C, H, W), float32, in [-1, 1], N at least 1.
        labels: (N,), int64, indices into ``class_names``; None without classes.
        class_names: names of the classes.
        name: what was loaded, without the path that leads there: ``folder:faces``.
        skipped: ``path: why`` of every image that was left out.

    Raises:
        ValueError: another shape, type or range.
    """

    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    name: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or not images.numel() or images.dtype != torch.float32:
            raise ValueError(f"{self.name}: images must be float32 (N, C, H, W), not {tuple(images.shape)}")
        if not (float(images.min()) >= -1 and float(images.max()) <= 1):
            raise ValueError(f"{self.name}: images must lie in [-1, 1]")
        if labels is None:
            return
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"{self.name}: labels must be int64, one for each image")
        if int(labels.min()) < 0 or int(labels.max()) >= len(self.class_names):
            raise ValueError(f"{self.name}: a label without a class name")

    @cached_property
    def sha256(self) -> str:
        """Of the bytes of ``images``, little-endian, as 64 hexadecimal digits."""
        array = self.images.contiguous().numpy().astype("<f4", copy=False)
        return hashlib.sha256(array.data).hexdigest()

    def some(self, count: int | None, seed: int) -> Tensor:
        """``count`` of the images at random, or all of them: (n, C, H, W).

        Raises:
            ValueError: there are not that many.
        """
        if count is None:
            return self.images
        if count > len(self.images):
            raise ValueError(f"{self.name} has {len(self.images)} images, not {count}")
        order = torch.randperm(len(self.images), generator=generator(seed, "some", self.name))
        return self.images[order[:count]]


def check_shape(name: str, shape: Shape, smallest: int = 1, largest: int | None = None) -> None:
    """Refuses all but 1 or 3 channels and sides from ``smallest`` to ``largest`` pixels.

    Raises:
        ValueError: another ``shape`` (C, H, W).
    """
    channels, *sides = shape
    fits = min(sides) >= smallest and (largest is None or max(sides) <= largest)
    if channels not in (1, 3) or not fits:
        span = f"at least {smallest}" if largest is None else f"{smallest} to {largest}"
        raise ValueError(f"{name} come as 1 or 3 channels and sides of {span} pixels, not {shape}")
