"""The handwritten digits that ship inside scikit-learn: 1,797 images, up-scaled."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from backdrift.core.randomness import generator


def load(shape: tuple[int, int, int]) -> Tensor:
    """All digits at ``shape`` (C, H, W), C 1 or 3, H = W >= 8: (1797, C, H, W) in [-1, 1].

    With three channels every digit gets a colour of its own, drawn from a fixed stream, so that the
    channels are not copies of each other.

    Raises:
        ValueError: another shape.
    """
    channels, height, width = shape
    if channels not in (1, 3) or height != width or height < 8:
        raise ValueError(f"digits come as 1 or 3 channels of square images from 8 pixels, not {shape}")
    raw = torch.tensor(load_digits().images / 16.0, dtype=torch.float32)[:, None]
    images = functional.interpolate(raw, size=(height, width), mode="bilinear").clamp(0, 1)
    if channels == 3:
        tint = torch.rand(len(images), 3, 1, 1, generator=generator(0, "digits", "tint"))
        images = images * (0.35 + 0.65 * tint / tint.amax(1, keepdim=True))
    return images * 2 - 1
