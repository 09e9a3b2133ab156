"""Arrays as PNG data URIs: small, clamped, never larger than their budget."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from backdrift.core.results import Array

MAX_TILES = 64
MAX_EDGE = 1024

_GAP = 1
_GAP_GREY = 128


@dataclass(frozen=True)
class Picture:
    """An image of the page: its data URI, the text that stands for it, and a caption."""

    uri: Markup
    width: int
    height: int
    alt: str
    caption: str


def picture(tiles: Array, alt: str, caption: str, budget: int) -> Picture:
    """A grid of images.

    Args:
        tiles: (n, C, H, W) with n > 0, in [-1, 1]; clamped here, the first ``MAX_TILES`` are drawn.
        alt: text for those who do not see it.
        caption: text below it.
        budget: bytes that the data URI may take.
    """
    image = Image.fromarray(_grid(_to_bytes(_drawable(tiles[:MAX_TILES]))))
    uri, size = _encode(image, budget)
    return Picture(uri, *size, alt, caption)


def picture_of_file(path: Path, alt: str, caption: str, budget: int) -> Picture:
    """A PNG as it is, drawn anew so that nothing but its pixels is kept.

    Raises:
        ValueError: not a PNG that can be read.
    """
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            image = opened.convert("L" if opened.mode == "L" else "RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture: {error}; remove it") from None
    uri, size = _encode(image, budget)
    return Picture(uri, *size, alt, caption)


def stretched(image: Array) -> Array:
    """An image of any range, scaled so that it fills [-1, 1]; a constant one becomes grey."""
    finite = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if high == low:
        return np.zeros_like(finite)
    return (finite - low) / (high - low) * 2 - 1


def channel_note(channels: int) -> str:
    """What is done with images that are neither grey nor RGB."""
    return "" if channels in (1, 3) else f" The {channels} channels are shown side by side."


def _drawable(tiles: Array) -> Array:
    """The same tiles with 1 or 3 channels."""
    n, channels, height, width = tiles.shape
    if channels in (1, 3):
        return tiles
    return tiles.transpose(0, 2, 1, 3).reshape(n, 1, height, channels * width)


def _to_bytes(tiles: Array) -> NDArray[np.uint8]:
    """(n, C, H, W) in [-1, 1] to (n, H, W, C) bytes."""
    unit = (np.nan_to_num(tiles).clip(-1, 1) + 1) / 2
    return (unit * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def _grid(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    n, height, width, channels = tiles.shape
    columns = min(n, math.ceil(math.sqrt(n * height / width)))
    rows = math.ceil(n / columns)
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels)
    sheet = np.full(shape, _GAP_GREY, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top = index // columns * (height + _GAP)
        left = index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet[..., 0] if channels == 1 else sheet


def _encode(image: Image.Image, budget: int) -> tuple[Markup, tuple[int, int]]:
    image.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.BOX)
    uri = _uri(image)
    while len(uri) > budget and max(image.size) > 1:
        factor = 0.95 * math.sqrt(budget / len(uri))
        size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
        image = image.resize(size, Image.Resampling.BOX)
        uri = _uri(image)
    return uri, image.size


def _uri(image: Image.Image) -> Markup:
    out = BytesIO()
    image.save(out, format="PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii"))
