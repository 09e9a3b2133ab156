"""Rates, areas under a ROC curve and their intervals; the shape of a number with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Z = 1.959964
"""Of a two-sided 95% interval."""


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


def wilson(hits: int, n: int, z: float = Z) -> tuple[float, float]:
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


def paired(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """Share of the first less that of the second, over the same cases, in [-1, 1].

    The interval is method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635: the Wilson intervals of
    both shares and their correlation over the cases. It has a width where every case agrees.

    Raises:
        ValueError: no cases, or two numbers of them.
    """
    n = len(first)
    if not n or n != len(second):
        raise ValueError(f"a paired difference takes the same cases twice, not {n} and {len(second)}")
    cases = list(zip(first, second, strict=True))
    both, one, other, none = (
        cases.count(case) for case in ((True, True), (True, False), (False, True), (False, False))
    )
    share_1, share_2 = (both + one) / n, (both + other) / n
    (low_1, high_1), (low_2, high_2) = wilson(both + one, n), wilson(both + other, n)
    product = float(both * none - one * other)
    if product > 0:
        product = max(product - n / 2, 0)
    spread = math.sqrt((both + one) * (other + none) * (both + other) * (one + none))
    phi = product / spread if spread else 0.0

    def half(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    apart = share_1 - share_2
    low = apart - half(share_1 - low_1, high_2 - share_2)
    high = apart + half(share_2 - low_2, high_1 - share_1)
    return Estimate(apart, low, high, n, "Newcombe, paired")


def auroc(negative: Sequence[float], positive: Sequence[float]) -> Estimate:
    """Area under the ROC curve: how often a positive scores above a negative, ties counted by half.

    The interval is method 5 of Newcombe, Statistics in Medicine 25 (2006) 559: the areas whose own
    variance would allow the one measured. Unlike that of Hanley and McNeil it has a width at 0 and 1.

    Args:
        negative: scores of clean inputs or models; ``positive`` of backdoored ones, higher when more
            suspicious.

    Raises:
        ValueError: no scores on one side, or one that is not a number.
    """
    from sklearn.metrics import roc_auc_score

    few, many = len(negative), len(positive)
    scores = _finite(negative) + _finite(positive)
    area = float(roc_auc_score([False] * few + [True] * many, scores))
    typical = (few + many) / 2 - 1

    def beyond(a: float) -> float:
        spread = a * (1 - a) * (1 + typical * ((1 - a) / (2 - a) + a / (1 + a))) / (few * many)
        return abs(area - a) - Z * math.sqrt(spread)

    low = 0.0 if area == 0 else _crossing(beyond, 0.0, area)
    high = 1.0 if area == 1 else _crossing(beyond, 1.0, area)
    return Estimate(area, low, high, few + many, "Newcombe")


def threshold_at(negative: Sequence[float], false_positive_rate: float = 0.05) -> float:
    """The lowest of the clean scores that at most this share of them lies above.

    What scores *above* it is flagged. With fewer than ``1 / false_positive_rate`` clean scores it is
    the largest of them.

    Args:
        false_positive_rate: in [0, 1).

    Raises:
        ValueError: no scores, one that is not a number, or a rate outside its range.
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"a false-positive rate lies in [0, 1), not at {false_positive_rate}")
    clean = _finite(negative)
    return clean[len(clean) - 1 - int(false_positive_rate * len(clean) + 1e-9)]


def tpr_at_fpr(
    negative: Sequence[float], positive: Sequence[float], false_positive_rate: float = 0.05
) -> Estimate:
    """Share of the positives above :func:`threshold_at`, with its Wilson interval.

    The interval takes the threshold as given: it has no share in the uncertainty of the clean scores.

    Raises:
        ValueError: see :func:`threshold_at`.
    """
    threshold = threshold_at(negative, false_positive_rate)
    return rate(sum(score > threshold for score in _finite(positive)), len(positive))


def _finite(scores: Sequence[float]) -> list[float]:
    found = sorted(map(float, scores))
    if not found or not all(map(math.isfinite, found)):
        raise ValueError("scores must be there and be finite numbers")
    return found


def _crossing(beyond: Callable[[float], float], outside: float, inside: float) -> float:
    """Where a function that is not positive at ``inside`` turns so, by bisection."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if beyond(middle) > 0 else (outside, middle)
    return inside
