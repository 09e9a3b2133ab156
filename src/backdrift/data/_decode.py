"""Image files that nobody trusts, one by one into one tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from backdrift.data._imageset import OnBad, Shape

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
MAX_PIXELS = 89_478_485
"""The size from which Pillow warns of a decompression bomb; here it is the end."""


class BadImage(ValueError):
    """An image that cannot be read; the message is the reason and names no file."""


def decode(file: BinaryIO) -> Image.Image:
    """The first frame of an image file, upright, as RGB or L with 8 bits.

    Transparent parts are laid on white; 16 bits are rounded to 8.

    Raises:
        BadImage: not an image of :data:`FORMATS`, damaged, or larger than :data:`MAX_PIXELS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _flat(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError:
            raise BadImage(f"more than {MAX_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            raise BadImage("not a PNG, JPEG, BMP, WebP or GIF image") from None
        except Exception as error:  # decoders of damaged files raise nearly everything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadImage(f"damaged: {reason}") from None


def _flat(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64) / 257  # 65535 becomes 255
        return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """An RGB or L image as (channels, H, W), float32, in [-1, 1]; channels 1 or 3."""
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    pixels = torch.from_numpy(array.reshape(image.height, image.width, channels))
    return pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1


def fit(image: Image.Image, shape: Shape) -> Tensor:
    """The largest centred part with the proportions of ``shape`` (C, H, W), resized with antialiasing."""
    channels, height, width = shape
    part = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
    return to_tensor(part, channels)


def decode_all(
    names: Sequence[str], read: Callable[[int], BinaryIO], shape: Shape, on_bad: OnBad, where: str
) -> tuple[Tensor, list[int], tuple[str, ...]]:
    """Decodes every image into one tensor; only one is open at a time.

    Args:
        names: of the images, for messages.
        read: opens number i, or raises :class:`BadImage`.
        where: the data set, for messages.

    Returns:
        Images (N, C, H, W) in [-1, 1], their N indices, and ``name: why`` of those skipped.

    Raises:
        ValueError: a bad image to be refused, or none that is good.
    """
    images = torch.empty(len(names), *shape)
    kept, skipped = list[int](), list[str]()
    for index, name in enumerate(names):
        try:
            with read(index) as file:
                images[len(kept)] = fit(decode(file), shape)
            kept.append(index)
        except (BadImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            line = f"{printable(name)}: {reason}"
            if on_bad == "refuse":
                raise ValueError(f"{where}: {line} (or skip bad images: --on-bad-image skip)") from None
            skipped.append(line)
    if not kept:
        raise ValueError(f"{where}: no image that can be read; {skipped[0]}")
    return images[: len(kept)], kept, tuple(skipped)


def printable(text: str) -> str:
    """A file name as one line that any terminal takes: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
