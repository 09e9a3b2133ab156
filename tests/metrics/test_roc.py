"""AUROC and rates at a fixed false-positive rate, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from backdrift.metrics.rates import auroc, rate, threshold_at, tpr_at_fpr


def drawn(seed: int, ties: bool) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(seed)
    clean, bad = random.normal(0, 1, 40), random.normal(1, 1.5, 25)
    return tuple((np.round(x) if ties else x).tolist() for x in (clean, bad))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_the_share_of_pairs_in_order(seed: int, ties: bool) -> None:
    clean, bad = drawn(seed, ties)
    pairs = [(c < b) + (c == b) / 2 for c in clean for b in bad]
    expected = sum(pairs) / len(pairs)
    found = auroc(clean, bad)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert 0 <= found.low < found.value < found.high <= 1
    assert auroc(bad, clean).value == pytest.approx(1 - expected, abs=1e-12)


def test_its_interval_solves_the_equation_of_method_five() -> None:
    clean, bad = drawn(0, ties=False)
    found = auroc(clean, bad)
    m, n = len(clean), len(bad)
    half = (m + n) / 2
    for a in (found.low, found.high):
        variance = a * (1 - a) * (1 + (half - 1) * (1 - a) / (2 - a) + (half - 1) * a / (1 + a)) / (m * n)
        assert abs(found.value - a) == pytest.approx(1.959964 * math.sqrt(variance), abs=1e-9)


def test_its_interval_covers_what_it_should() -> None:
    """Normal scores one standard deviation apart: the area is Phi(1 / sqrt 2)."""
    random, truth, inside = np.random.default_rng(0), 0.5 * (1 + math.erf(0.5)), 0
    for _ in range(400):
        found = auroc(random.normal(0, 1, 30).tolist(), random.normal(1, 1, 30).tolist())
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.99


@pytest.mark.parametrize(("clean", "bad", "value"), [([0, 1], [2, 3], 1.0), ([2, 3], [0, 1], 0.0)])
def test_perfect_separation_is_no_certainty(clean: list[float], bad: list[float], value: float) -> None:
    found = auroc(clean, bad)
    assert found.value == value
    assert found.high - found.low > 0.2


@pytest.mark.parametrize("false_positive_rate", [0.0, 0.05, 0.1, 0.25])
@pytest.mark.parametrize("ties", [False, True])
def test_tpr_against_the_roc_curve_of_scikit_learn(false_positive_rate: float, ties: bool) -> None:
    clean, bad = drawn(1, ties)
    fpr, tpr, _ = roc_curve([0] * len(clean) + [1] * len(bad), clean + bad, drop_intermediate=False)
    found = tpr_at_fpr(clean, bad, false_positive_rate)
    assert found.value == pytest.approx(tpr[fpr <= false_positive_rate + 1e-12].max())
    assert found == rate(round(found.value * len(bad)), len(bad))


@pytest.mark.parametrize("n", [1, 7, 19, 20, 21, 40, 100])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_threshold_is_the_lowest_that_keeps_the_rate(n: int, share: float) -> None:
    clean = np.random.default_rng(n).permutation(n).tolist()
    threshold = threshold_at(clean, share)
    assert sum(s > threshold for s in clean) <= share * n + 1e-9
    if threshold > 0:
        assert sum(s > threshold - 1 for s in clean) > share * n


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf, 1.0]])
def test_what_is_no_score_is_refused(bad: list[float]) -> None:
    for call in (lambda: auroc([1.0], bad), lambda: auroc(bad, [1.0]), lambda: threshold_at(bad)):
        with pytest.raises(ValueError, match="scores"):
            call()
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="false-positive"):
            threshold_at([1.0], share)
