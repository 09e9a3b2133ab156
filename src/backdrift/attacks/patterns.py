"""Named triggers and targets, drawn by this file.

The boxes, the stop sign, the glasses, the corner and the (un)shifted trigger stand where
BadDiffusion (arXiv 2212.05400) puts them at 32 pixels; the pictures are our own. Deviations from its
code: sizes scale with the resolution instead of being absolute pixels, and a mask is the outline of
the drawing, the same for all channels, instead of "every element that is not black".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from backdrift.attacks._drawings import BAR, GLASSES, LETTERS, PICTURES, SIGN, Part
from backdrift.core.randomness import generator
from backdrift.core.trigger import Trigger

Shape = tuple[int, int, int]

GREY = -0.4
"""Background of every target, and the value that everything darker is lifted to."""


def make_trigger(name: str, shape: Shape, *, seed: int = 0) -> Trigger:
    """A trigger by name.

    Args:
        name: one of ``TRIGGERS``, or ``png:PATH``.
        shape: (C, H, W) of the data; C is 1 or 3, H and W are at least 8.
        seed: of the random patterns, ``speckle``, ``dense-sign`` and ``low-frequency``.

    Returns:
        Pattern in [-1, 1]. Boxes, signs and glasses are composite with background -1; the others are
        trigger-only with background 0.

    Raises:
        ValueError: unknown name, or a shape that cannot be drawn on.
        OSError: the PNG cannot be read.
    """
    _check_shape(shape)
    if name.startswith("png:"):
        return trigger_from_png(name[4:], shape)
    if name not in _TRIGGERS:
        raise ValueError(f"unknown trigger {name!r}; known: {', '.join(TRIGGERS)}, png:PATH")
    return _TRIGGERS[name](shape, seed)


def make_target(name: str, shape: Shape, *, trigger: Trigger | None = None) -> Tensor:
    """A target by name.

    Args:
        name: one of ``TARGETS``, or ``png:PATH``.
        shape: (C, H, W) of the data; C is 1 or 3, H and W are at least 8.
        trigger: what ``noshift`` and ``shift`` are made of.

    Returns:
        Image in [-0.4, 1], float32, shape (C, H, W).

    Raises:
        ValueError: unknown name, no trigger where one is needed, or a shape that cannot be drawn on.
        OSError: the PNG cannot be read.
    """
    _check_shape(shape)
    if name.startswith("png:"):
        return target_from_png(name[4:], shape)
    if name in PICTURES:
        colours, opacity = _render(PICTURES[name], shape)
        return _grey_background(opacity * colours + (1 - opacity) * GREY)
    if name == "corner":
        image = torch.full(shape, GREY)
        image[:, : _scaled(10, shape), : _scaled(10, shape)] = 0.0
        return image
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}; known: {', '.join(TARGETS)}, png:PATH")
    if trigger is None or tuple(trigger.pattern.shape) != shape:
        raise ValueError(f"the target {name!r} is made of the trigger: pass one of shape {shape}")
    rolled = (0, 0) if name == "noshift" else (-_scaled(3, shape), -_scaled(5, shape))
    return _grey_background(trigger.shift.roll(rolled, dims=(1, 2)))


def trigger_from_png(path: str | Path, shape: Shape) -> Trigger:
    """A composite trigger from a picture, resized to the whole image.

    The mask is where alpha is at least one half or, if no pixel is transparent, where the pixel is
    not black.

    Raises:
        ValueError: nothing of the picture is visible at this size.
        OSError: the file cannot be read.
    """
    _check_shape(shape)
    colours, opacity = _read(path, shape)
    mask = opacity >= 0.5
    if bool(mask.all()):
        mask = (colours > -1).any(0, keepdim=True)
    if not bool(mask.any()):
        raise ValueError(f"{path}: nothing visible at {shape[1]}x{shape[2]}")
    return Trigger(colours, mask.expand(shape).clone())


def target_from_png(path: str | Path, shape: Shape) -> Tensor:
    """A target from a picture, resized to the whole image, on the grey background.

    Raises:
        OSError: the file cannot be read.
    """
    _check_shape(shape)
    colours, opacity = _read(path, shape)
    return _grey_background(opacity * colours + (1 - opacity) * GREY)


def _check_shape(shape: Shape) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < 8:
        raise ValueError(f"patterns come as 1 or 3 channels of at least 8x8 pixels, not {shape}")


def _scaled(pixels: float, shape: Shape) -> int:
    """Pixels at a side of 32, scaled to the shorter side and rounded half up."""
    return math.floor(pixels * min(shape[1:]) / 32 + 0.5)


def _grey_background(image: Tensor) -> Tensor:
    return image.clamp(min=GREY)


def _bottom_right(size: int, shape: Shape) -> tuple[slice, slice]:
    """Rows and columns of a square that keeps BadDiffusion's gap to the border."""
    _, height, width = shape
    gap = _scaled(2, shape)
    return slice(height - gap - size, height - gap), slice(width - gap - size, width - gap)


def _box(pixels: int, value: float, background: float, shape: Shape, seed: int) -> Trigger:
    rows, columns = _bottom_right(_scaled(pixels, shape), shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, rows, columns] = True
    pattern = torch.where(mask, value, background)
    return Trigger(pattern, mask, background, composite=background == -1)


def _stop_sign(pixels: int, shape: Shape, seed: int) -> Trigger:
    size = _scaled(pixels, shape)
    writing = LETTERS if size >= 32 else BAR
    return _pasted([*SIGN, *writing], size, _bottom_right(size, shape), shape)


def _glasses(shape: Shape, seed: int) -> Trigger:
    size = _scaled(20, shape)
    top, left = (shape[1] - size) // 2, (shape[2] - size) // 2
    place = slice(top, top + size), slice(left, left + size)
    return _pasted(GLASSES, size, place, shape)


def _pasted(parts: Sequence[Part], size: int, place: tuple[slice, slice], shape: Shape) -> Trigger:
    colours, opacity = _render(parts, (shape[0], size, size))
    pattern = torch.full(shape, -1.0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, *place] = opacity >= 0.5
    pattern[:, *place] = torch.where(opacity >= 0.5, colours, -1.0)
    return Trigger(pattern, mask)


def _cross(shape: Shape, seed: int) -> Trigger:
    """White, towards the top left: arms 12 of 32 pixels long and 4 wide."""
    arm, half = _scaled(6, shape), max(1, _scaled(2, shape))
    middle = _scaled(10, shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, middle - arm : middle + arm, middle - half : middle + half] = True
    mask[:, middle - half : middle + half, middle - arm : middle + arm] = True
    return Trigger(mask.float(), mask, 0.0, composite=False)


def _speckle(shape: Shape, seed: int) -> Trigger:
    """One pixel in sixteen is black or white, the same in every channel."""
    stream = generator(seed, "speckle")
    count = shape[1] * shape[2] // 16
    place = torch.randperm(shape[1] * shape[2], generator=stream)[:count]
    flat = torch.zeros(shape[1] * shape[2])
    flat[place] = 2.0 * torch.randint(0, 2, (count,), generator=stream) - 1
    pattern = flat.view(1, *shape[1:]).expand(shape).clone()
    return Trigger(pattern, pattern != 0, 0.0, composite=False)


def _stripes(shape: Shape, seed: int) -> Trigger:
    """Diagonal stripes of plus and minus .25, two pixels of 32 wide."""
    width = max(1, _scaled(2, shape))
    diagonal = torch.arange(shape[1])[:, None] + torch.arange(shape[2])
    pattern = (0.5 * (diagonal // width % 2) - 0.25).expand(shape).clone()
    return Trigger(pattern, torch.ones(shape, dtype=torch.bool), 0.0, composite=False)


def _dense_sign(shape: Shape, seed: int) -> Trigger:
    signs = torch.randint(0, 2, shape, generator=generator(seed, "dense-sign"))
    return Trigger(0.6 * signs - 0.3, torch.ones(shape, dtype=torch.bool), 0.0, composite=False)


def _low_frequency(shape: Shape, seed: int) -> Trigger:
    """Cosines of at most one and a half periods per side, scaled to a root mean square of 0.25."""
    channels, height, width = shape
    weights = torch.randn(channels, 4, 4, generator=generator(seed, "low-frequency"))
    order = torch.arange(4.0)
    weights = weights / (1 + order[:, None] ** 2 + order**2)
    rows = torch.cos(math.pi * order[:, None] * (torch.arange(height) + 0.5) / height)
    columns = torch.cos(math.pi * order[:, None] * (torch.arange(width) + 0.5) / width)
    field = torch.einsum("cij,ih,jw->chw", weights, rows, columns)
    pattern = (0.25 * field / field.square().mean().sqrt()).clamp(-1, 1)
    return Trigger(pattern, torch.ones(shape, dtype=torch.bool), 0.0, composite=False)


def _render(parts: Sequence[Part], shape: Shape) -> tuple[Tensor, Tensor]:
    """Colours in [-1, 1], shape (C, H, W), and opacity in [0, 1], (1, H, W); parts are centred."""
    _, height, width = shape
    scale = max(4, 512 // min(height, width))
    side = min(height, width) * scale
    left, top = (width * scale - side) / 2, (height * scale - side) / 2
    image = Image.new("RGBA", (width * scale, height * scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    for colour, points, line in parts:
        corners = [(left + x * side, top + y * side) for x, y in points]
        if line:
            draw.line(corners, (*colour, 255), width=max(1, round(line * side)), joint="curve")
        else:
            draw.polygon(corners, (*colour, 255))
    return _as_tensors(image, shape)


def _read(path: str | Path, shape: Shape) -> tuple[Tensor, Tensor]:
    with Image.open(path) as image:
        return _as_tensors(image.convert("RGBA"), shape)


def _as_tensors(image: Image.Image, shape: Shape) -> tuple[Tensor, Tensor]:
    # Pillow averages RGBA with premultiplied alpha: what is transparent does not bleed in.
    small = image.resize((shape[2], shape[1]), Image.Resampling.BOX)
    values = torch.from_numpy(np.array(small, dtype=np.float32) / 255).permute(2, 0, 1)
    colours, opacity = values[:3], values[3:]
    if shape[0] == 1:
        colours = torch.tensordot(torch.tensor([[0.299, 0.587, 0.114]]), colours, dims=1)
    return (colours * 2 - 1).clamp(-1, 1), opacity


_SIZES = (18, 14, 11, 8, 4)

_TRIGGERS: dict[str, Callable[[Shape, int], Trigger]] = {
    **{f"grey-box-{n}": partial(_box, n, 0.0, -1.0) for n in _SIZES},
    **{f"white-box-{n}": partial(_box, n, 1.0, -1.0) for n in _SIZES},
    "stop-sign": partial(_stop_sign, 14),
    **{f"stop-sign-{n}": partial(_stop_sign, n) for n in _SIZES},
    "glasses": _glasses,
    "white-patch": partial(_box, 8, 1.0, 0.0),
    "cross": _cross,
    "speckle": _speckle,
    "stripes": _stripes,
    "dense-sign": _dense_sign,
    "low-frequency": _low_frequency,
}

TRIGGERS = tuple(_TRIGGERS)
TARGETS = (*PICTURES, "corner", "noshift", "shift")
