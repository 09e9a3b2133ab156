"""Rates and their Wilson intervals; the shape of a number with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Args:
        n: samples behind it.
        interval: how the interval was made, for example ``Wilson``.
    """

    value: float
    low: float
    high: float
    n: int
    interval: str


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson 95% interval of a rate; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    rate, spread = hits / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high  # exact at the ends, where rounding would leave the rate outside


def rate(hits: int, n: int) -> Estimate:
    """A share in [0, 1] with its Wilson interval."""
    low, high = wilson(hits, n)
    return Estimate(hits / max(1, n), low, high, n, "Wilson")
