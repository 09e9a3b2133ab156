"""Image data sets, one file each: tensors (N, C, H, W) in [-1, 1]."""

from __future__ import annotations

import importlib

from torch import Tensor

DATASETS = ("digits",)


def load_images(name: str, shape: tuple[int, int, int]) -> Tensor:
    """The data set ``name`` at ``shape`` (C, H, W): float32, (N, C, H, W), in [-1, 1].

    Raises:
        ValueError: unknown data set, or a shape that it cannot take.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    images: Tensor = importlib.import_module(f"backdrift.data.{name}").load(shape)
    return images
