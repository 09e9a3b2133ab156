"""The handwritten digits that ship inside scikit-learn: 1,797 images, up-scaled."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from backdrift.core.randomness import generator
from backdrift.data._imageset import ImageSet, OnBad, Shape

USAGE = "digits"


def load(source: str, shape: Shape, on_bad: OnBad) -> ImageSet:
    """All digits at ``shape`` (C, H, W), C 1 or 3, H = W >= 8: (1797, C, H, W) in [-1, 1].

    With three channels every digit gets a colour of its own, drawn from a fixed stream, so that the
    channels are not copies of each other.

    Raises:
        ValueError: another shape.
    """
    channels, height, width = shape
    if channels not in (1, 3) or height != width or height < 8:
        raise ValueError(f"digits come as 1 or 3 channels of square images from 8 pixels, not {shape}")
    found = load_digits()
    raw = torch.tensor(found.images / 16.0, dtype=torch.float32)[:, None]
    images = functional.interpolate(raw, size=(height, width), mode="bilinear").clamp(0, 1)
    if channels == 3:
        tint = torch.rand(len(images), 3, 1, 1, generator=generator(0, "digits", "tint"))
        images = images * (0.35 + 0.65 * tint / tint.amax(1, keepdim=True))
    labels = torch.tensor(found.target, dtype=torch.int64)
    return ImageSet(images * 2 - 1, labels, tuple("0123456789"), "digits")
