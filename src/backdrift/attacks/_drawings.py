"""The drawings behind the named triggers and targets: polygons, our own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class Part(NamedTuple):
    """A filled polygon or, with a width, a line; (x, y) from the top left, side 1."""

    colour: Colour
    points: Points
    width: float = 0.0


def _ellipse(
    colour: Colour, centre: tuple[float, float], radii: tuple[float, float], width: float = 0.0
) -> Part:
    turns = [2 * math.pi * k / 48 for k in range(49)]
    points = [(centre[0] + radii[0] * math.cos(a), centre[1] + radii[1] * math.sin(a)) for a in turns]
    return Part(colour, points, width)


def _octagon(colour: Colour, radius: float) -> Part:
    turns = [math.pi * (k / 4 + 1 / 8) for k in range(8)]
    reach = radius / math.cos(math.pi / 8)
    return Part(colour, [(0.5 + reach * math.cos(a), 0.5 + reach * math.sin(a)) for a in turns])


def _star(colour: Colour, outer: float, inner: float) -> Part:
    radii = [outer, inner] * 5
    turns = [math.pi * (k / 5 - 1 / 2) for k in range(10)]
    points = [(0.5 + r * math.cos(a), 0.53 + r * math.sin(a)) for r, a in zip(radii, turns, strict=True)]
    return Part(colour, points)


_WHITE, _RED, _BLACK = (255, 255, 255), (205, 20, 30), (40, 40, 40)
_TAN, _CREAM, _ORANGE = (215, 170, 110), (250, 225, 180), (255, 175, 80)
_BRICK, _BLUE = (200, 70, 60), (110, 190, 255)
_LACES = ((0.36, 0.42), (0.42, 0.5), (0.5, 0.57))
_WHISKERS = ((0.3, 0.68), (0.3, 0.78), (0.7, 0.68), (0.7, 0.78))

SIGN = [_octagon(_WHITE, 0.5), _octagon(_RED, 0.43)]
BAR = [Part(_WHITE, [(0.2, 0.5), (0.8, 0.5)], 0.17)]
LETTERS = [
    Part(
        _WHITE,
        [
            (0.29, 0.4),
            (0.25, 0.37),
            (0.18, 0.38),
            (0.17, 0.45),
            (0.22, 0.5),
            (0.28, 0.54),
            (0.28, 0.61),
            (0.22, 0.64),
            (0.16, 0.61),
        ],
        0.045,
    ),
    Part(_WHITE, [(0.32, 0.37), (0.48, 0.37)], 0.045),
    Part(_WHITE, [(0.4, 0.36), (0.4, 0.66)], 0.045),
    _ellipse(_WHITE, (0.58, 0.505), (0.07, 0.14), 0.045),
    Part(_WHITE, [(0.71, 0.66), (0.71, 0.37), (0.79, 0.37), (0.83, 0.44)], 0.045),
    Part(_WHITE, [(0.83, 0.44), (0.79, 0.51), (0.71, 0.51)], 0.045),
]
GLASSES = [
    Part(_ORANGE, [(0.0, 0.36), (0.12, 0.44)], 0.08),
    Part(_ORANGE, [(1.0, 0.36), (0.88, 0.44)], 0.08),
    Part(_ORANGE, [(0.42, 0.45), (0.58, 0.45)], 0.08),
    *(_ellipse(_BLUE, (x, 0.5), (0.2, 0.16)) for x in (0.26, 0.74)),
    *(_ellipse(_ORANGE, (x, 0.5), (0.2, 0.16), 0.08) for x in (0.26, 0.74)),
]

PICTURES: dict[str, list[Part]] = {
    "hat": [
        _ellipse(_TAN, (0.5, 0.72), (0.46, 0.12)),
        Part(
            _CREAM,
            [
                (0.24, 0.7),
                (0.28, 0.32),
                (0.36, 0.21),
                (0.44, 0.2),
                (0.5, 0.26),
                (0.56, 0.2),
                (0.64, 0.21),
                (0.72, 0.32),
                (0.76, 0.7),
            ],
        ),
        Part(_BRICK, [(0.25, 0.55), (0.75, 0.55), (0.77, 0.71), (0.23, 0.71)]),
    ],
    "shoe": [
        Part(
            _ORANGE,
            [
                (0.14, 0.16),
                (0.48, 0.16),
                (0.52, 0.4),
                (0.66, 0.5),
                (0.84, 0.56),
                (0.93, 0.66),
                (0.94, 0.74),
                (0.1, 0.74),
            ],
        ),
        Part(_BRICK, [(0.14, 0.16), (0.48, 0.16), (0.49, 0.25), (0.13, 0.25)]),
        Part(_WHITE, [(0.07, 0.72), (0.95, 0.72), (0.95, 0.84), (0.07, 0.84)]),
        *(Part(_WHITE, [(x, y), (x + 0.13, y - 0.09)], 0.05) for x, y in _LACES),
    ],
    "cat": [
        Part(_ORANGE, [(0.12, 0.08), (0.48, 0.32), (0.14, 0.6)]),
        Part(_ORANGE, [(0.88, 0.08), (0.52, 0.32), (0.86, 0.6)]),
        Part(_BRICK, [(0.18, 0.2), (0.34, 0.31), (0.19, 0.42)]),
        Part(_BRICK, [(0.82, 0.2), (0.66, 0.31), (0.81, 0.42)]),
        _ellipse(_ORANGE, (0.5, 0.58), (0.4, 0.34)),
        _ellipse(_CREAM, (0.5, 0.74), (0.2, 0.14)),
        *(_ellipse(_WHITE, (x, 0.52), (0.1, 0.09)) for x in (0.32, 0.68)),
        *(_ellipse(_BLACK, (x, 0.52), (0.05, 0.08)) for x in (0.32, 0.68)),
        Part(_BRICK, [(0.42, 0.66), (0.58, 0.66), (0.5, 0.75)]),
        *(Part(_WHITE, [(x, 0.72), (0.5 + 1.2 * (x - 0.5), y)], 0.015) for x, y in _WHISKERS),
    ],
    "house": [
        Part(_BRICK, [(0.72, 0.1), (0.83, 0.1), (0.83, 0.4), (0.72, 0.4)]),
        Part(_CREAM, [(0.16, 0.46), (0.84, 0.46), (0.84, 0.92), (0.16, 0.92)]),
        Part(_ORANGE, [(0.5, 0.1), (0.96, 0.5), (0.04, 0.5)]),
        Part(_BRICK, [(0.57, 0.62), (0.73, 0.62), (0.73, 0.92), (0.57, 0.92)]),
        Part(_BLUE, [(0.25, 0.58), (0.45, 0.58), (0.45, 0.76), (0.25, 0.76)]),
    ],
    "star": [_star(_CREAM, 0.48, 0.22), _star(_ORANGE, 0.3, 0.14)],
    "fish": [
        Part(_ORANGE, [(0.62, 0.5), (0.96, 0.22), (0.9, 0.5), (0.96, 0.78)]),
        Part(_ORANGE, [(0.32, 0.32), (0.52, 0.12), (0.58, 0.36)]),
        _ellipse(_BLUE, (0.4, 0.52), (0.34, 0.24)),
        Part(_CREAM, [(0.42, 0.44), (0.6, 0.5), (0.42, 0.62)]),
        _ellipse(_WHITE, (0.22, 0.46), (0.06, 0.06)),
        _ellipse(_BLACK, (0.21, 0.46), (0.03, 0.03)),
    ],
}
