"""Patches of the photographs that ship inside scikit-learn: 2,048, at several scales."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from backdrift.core.randomness import generator
from backdrift.data._decode import decode, to_tensor
from backdrift.data._imageset import ImageSet, OnBad, Shape, check_shape

USAGE = "photos[:skimage]"
COUNT = 2048
SMALLEST = 48
MORE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
FLAT = 12.0
"""Grey levels of standard deviation; a patch below it, such as sky, is drawn again."""


def load(source: str, shape: Shape, on_bad: OnBad) -> ImageSet:
    """2,048 seeded crops at ``shape`` (C, H, W), C 1 or 3, sides of 8 to 256: (2048, C, H, W) in [-1, 1].

    ``photos`` knows china and flower, and is the same wherever scikit-learn is; ``photos:skimage`` adds
    the four photographs that lie inside an installed scikit-image, downloading nothing. The class is the
    photograph. A crop has the proportions of the shape; its shorter side is drawn log-uniformly from the
    larger of 48 pixels and the size wanted to the largest that fits. Half of the crops are mirrored.

    Raises:
        ValueError: another shape or source, or scikit-image is not installed.
    """
    check_shape("photos", shape, 8, 256)
    if source not in ("", "skimage"):
        raise ValueError(f"photos: nothing or skimage after the colon, not {source!r}")
    found = _sklearn() | (_skimage() if source else {})
    photos = list(found.values())
    images = torch.empty(COUNT, *shape)
    for index in range(COUNT):
        stream = generator(0, "photos", index)
        images[index] = _patch(photos[index % len(photos)], shape, stream)
    labels = torch.arange(COUNT) % len(photos)
    return ImageSet(images, labels, tuple(found), f"photos:{source}" if source else "photos")


def _sklearn() -> dict[str, Image.Image]:
    bunch = load_sample_images()
    pairs = zip(bunch.filenames, bunch.images, strict=True)
    return {Path(name).stem: Image.fromarray(pixels) for name, pixels in sorted(pairs, key=lambda p: p[0])}


def _skimage() -> dict[str, Image.Image]:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError("photos:skimage needs scikit-image: pip install scikit-image")
    found = {}
    for name in MORE:
        path = Path(spec.origin).parent / "data" / name
        if not path.is_file():
            raise ValueError(f"photos:skimage: {name} is not in the installed scikit-image")
        with path.open("rb") as file:
            found[path.stem] = decode(file).convert("RGB")
    return found


def _patch(photo: Image.Image, shape: Shape, stream: torch.Generator, tries: int = 4) -> Tensor:
    channels, height, width = shape
    wide, high = width / min(height, width), height / min(height, width)
    largest = min(photo.width / wide, photo.height / high)
    smallest = min(max(SMALLEST, min(height, width)), largest)
    for _ in range(tries):
        scale, x, y, mirrored = torch.rand(4, generator=stream, dtype=torch.float64).tolist()
        side = smallest * math.exp(scale * math.log(largest / smallest))
        left, top = x * (photo.width - side * wide), y * (photo.height - side * high)
        box = (left, top, min(left + side * wide, photo.width), min(top + side * high, photo.height))
        patch = photo.resize((width, height), Image.Resampling.LANCZOS, box=box)
        if np.asarray(patch.convert("L")).std() >= FLAT:
            break
    if mirrored < 0.5:
        patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return to_tensor(patch, channels)
