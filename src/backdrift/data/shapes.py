"""Drawn shapes: 2,048 images of eight kinds, any size, anti-aliased."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from backdrift.core.randomness import generator
from backdrift.data._imageset import ImageSet, OnBad, Shape, check_shape

USAGE = "shapes"
COUNT = 2048
CHUNK = 64
LUMA = (0.299, 0.587, 0.114)
INNER = math.cos(math.radians(72)) / math.cos(math.radians(36))  # of a pentagram, over its outer radius


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75).abs() - 0.25


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 1, 0.8 - torch.hypot(x - 0.5, y))


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs() * math.sqrt(3) / 2 - y / 2, y) - 0.5


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.75


def _star(x: Tensor, y: Tensor) -> Tensor:
    """One edge, from an inner corner at angle 0 to a tip at 36 degrees, seen ten times."""
    radius, step = torch.hypot(x, y), 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(y, x), step) - step / 2).abs()
    edge = (math.cos(step / 2) - INNER, math.sin(step / 2))
    across, along = radius * torch.cos(angle) - INNER, radius * torch.sin(angle)
    return (across * edge[1] - along * edge[0]) / math.hypot(*edge)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.maximum(x.abs() - 1, y.abs() - 0.35)
    return torch.minimum(wide, torch.maximum(x.abs() - 0.35, y.abs() - 1))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square with a circle on two of its sides."""
    body = torch.maximum(x.abs(), y.abs())
    lobes = torch.minimum(torch.hypot(x - 0.55, y), torch.hypot(x, y - 0.55))
    return torch.minimum(body, lobes) - 0.55


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "ring": _ring,
    "crescent": _crescent,
    "triangle": _triangle,
    "square": _square,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}
"""Distance of a point (x, y) to a shape of about unit radius; negative inside."""


def load(source: str, shape: Shape, on_bad: OnBad) -> ImageSet:
    """All shapes at ``shape`` (C, H, W), C 1 or 3, sides from 8 pixels: (2048, C, H, W) in [-1, 1].

    Image i shows kind ``i % 8`` and the same scene at every size: colour, place, size, angle, shading,
    shadow and background come from a fixed stream. Values are rounded to 256 levels.

    Raises:
        ValueError: another shape.
    """
    check_shape("shapes", shape, 8)
    scenes = torch.rand(COUNT, 24, generator=generator(0, "shapes"))
    labels = torch.arange(COUNT) % len(KINDS)
    images = torch.empty(COUNT, *shape)
    for first in range(0, COUNT, CHUNK):
        part = slice(first, first + CHUNK)
        drawn = _draw(scenes[part], labels[part], shape[1:])
        if shape[0] == 1:
            drawn = (drawn * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        images[part] = (drawn.clamp(0, 1) * 255).round() / 127.5 - 1
    return ImageSet(images, labels, tuple(KINDS), "shapes")


def _draw(scenes: Tensor, labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Scenes (N, 24) of uniform numbers as RGB, (N, 3, H, W), about [0, 1]."""
    u = scenes.T[..., None, None]  # (24, N, 1, 1)
    height, width = size
    unit = min(size)
    y = ((torch.arange(height) + 0.5 - height / 2) / unit)[:, None]
    x = ((torch.arange(width) + 0.5 - width / 2) / unit)[None]

    radius = 0.17 + 0.17 * u[0]
    room = 0.5 - 0.9 * radius
    left = (2 * u[1] - 1) * (width / unit / 2 - 0.5 + room)
    top = (2 * u[2] - 1) * (height / unit / 2 - 0.5 + room)
    angle = 2 * math.pi * u[3]

    def distance(dx: float, dy: float) -> Tensor:
        across, down = x - left - dx, y - top - dy
        right = (across * torch.cos(angle) + down * torch.sin(angle)) / radius
        below = (down * torch.cos(angle) - across * torch.sin(angle)) / radius
        each = [k(right[labels == i], below[labels == i]) for i, k in enumerate(KINDS.values())]
        order = torch.cat([(labels == i).nonzero()[:, 0] for i in range(len(KINDS))])
        return torch.cat(each)[order.argsort()] * radius

    dark, light = 0.14 + 0.26 * u[4], 0.64 + 0.24 * u[5]
    night = u[6] < 0.5
    behind, front = torch.where(night, dark, light), torch.where(night, light, dark)
    hue = u[7] + 0.25 + 0.5 * u[8]
    shade = 0.9 - 0.3 * ((x - left) + 1.4 * (y - top)) / radius * 0.5
    fill = _colour(hue, front * shade, 0.12 + 0.3 * u[9])
    ground = _ground(u, x, y, behind)
    shadow = (0.5 - distance(0.03, 0.05) / 0.09).clamp(0, 1)
    coverage = (0.5 - distance(0.0, 0.0) * unit).clamp(0, 1)
    ground = ground * (1 - 0.35 * shadow[:, None])
    return ground + coverage[:, None] * (fill - ground)


def _ground(u: Tensor, x: Tensor, y: Tensor, lightness: Tensor) -> Tensor:
    """A gradient, straight or round, between two near colours, striped in a third of the scenes."""
    angle, turn = 2 * math.pi * u[10], 2 * math.pi * u[11]
    straight = 0.5 + x * torch.cos(angle) + y * torch.sin(angle)
    mixed = torch.where(u[12] < 0.6, straight, 1.4 * torch.hypot(x - 0.6 * (u[13] - 0.5), y)).clamp(0, 1)
    wave = torch.sin((x * torch.cos(turn) + y * torch.sin(turn)) * 2 * math.pi / (0.25 + 0.25 * u[14]))
    stripes = 0.06 * (u[15] < 0.33) * wave
    strength = 0.08 + 0.2 * u[16]
    start = _colour(u[7], lightness + 0.1 * (u[17] - 0.5) + stripes, strength)
    end = _colour(u[7] + 0.3 * (u[18] - 0.5), lightness - 0.2 * (u[19] - 0.5) + stripes, strength)
    return start + mixed[:, None] * (end - start)


def _colour(hue: Tensor, lightness: Tensor, strength: Tensor) -> Tensor:
    """RGB in front of the last two axes: three waves a third of a turn apart."""
    waves = [torch.cos(2 * math.pi * (hue + third / 3)) for third in range(3)]
    return torch.stack([lightness + strength * wave for wave in waves], dim=1).clamp(0, 1)
