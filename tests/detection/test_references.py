"""Decisions on made-up features of made-up reference models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backdrift.core.results import Calibration
from backdrift.detection._references import References, by_forest, by_thresholds
from calibrations import table_of
from tiny import tiny_model

NAMES = ("uniformity", "total variation")


def references(clean: Any, backdoored: Any = ()) -> References:
    rows = [[dict(zip(NAMES, map(float, v), strict=True)) for v in part] for part in (clean, backdoored)]
    table = table_of("elijah", {}, tiny_model(timesteps=1000), *rows)
    found = References.of(table, "elijah", "quick", {})
    assert found is not None
    return found


def features(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=True))


@pytest.fixture(scope="module")
def apart() -> References:
    """Clean around (.5, 30), backdoored around (.1, 20)."""
    random = np.random.default_rng(0)
    return references(
        random.normal((0.5, 30), (0.05, 2), (20, 2)), random.normal((0.1, 20), (0.03, 2), (15, 2))
    )


def test_a_forest_separates_what_is_apart(apart: References) -> None:
    low, high = by_forest(apart, features(0.08, 19)), by_forest(apart, features(0.55, 31))
    assert low.flagged
    assert low.score > 0.9
    assert not high.flagged
    assert high.score < 0.1
    assert low.false_positives == 0
    assert max(low.clean) < 0.5 <= min(low.backdoored)
    assert (len(low.clean), len(low.backdoored)) == (20, 15)


def test_a_forest_is_the_one_of_scikit_learn(apart: References) -> None:
    from sklearn.ensemble import RandomForestClassifier

    rows = [[row[name] for name in sorted(NAMES)] for row in apart.rows]
    labels = [False] * len(apart.clean) + [True] * len(apart.backdoored)
    votes = [
        RandomForestClassifier(random_state=seed).fit(rows, labels).predict_proba([[25.0, 0.3]])[0, 1]
        for seed in range(3)
    ]
    found = by_forest(apart, features(0.3, 25))
    assert found.score == pytest.approx(np.mean(votes), abs=0.25)
    assert by_forest(apart, features(0.3, 25)) == found


def test_a_forest_on_noise_has_a_rate_that_shows_it() -> None:
    """Held out, not in sample: a forest knows its own rows by heart."""
    random = np.random.default_rng(1)
    found = by_forest(references(random.random((20, 2)), random.random((20, 2))), features(0.5, 0.5))
    assert found.false_positives >= 4


def test_a_forest_needs_backdoored_references() -> None:
    with pytest.raises(ValueError, match="two of each"):
        by_forest(references([(0.5, 30), (0.6, 31)]), features(0.1, 20))


@pytest.mark.parametrize("n", [20, 39, 40, 100])
def test_thresholds_keep_five_percent_of_the_clean_for_each_feature(n: int) -> None:
    clean = np.stack([np.random.default_rng(n + i).permutation(n) for i in (0, 1)], 1) + 1.0
    table = references(clean)
    found = by_thresholds(table, features(n, n))
    for column, name in enumerate(NAMES):
        below = (clean[:, column] < found.cuts[name]).sum()
        assert below == int(0.05 * n + 1e-9)
    assert not found.flagged
    for values in (np.array(np.meshgrid([0.5, 1.5, 3.5, n], [0.5, 2.5, n])).T).reshape(-1, 2):
        asked = features(*values)
        flagged = any(asked[name] < found.cuts[name] for name in NAMES)
        assert by_thresholds(table, asked).flagged == flagged


def test_one_low_feature_suffices_and_a_high_one_is_innocent(apart: References) -> None:
    assert by_thresholds(apart, features(0.1, 30)).flagged
    assert by_thresholds(apart, features(0.5, 10)).flagged
    assert not by_thresholds(apart, features(9.0, 90)).flagged
    assert by_thresholds(apart, features(0.1, 10)).score == 1


def test_thresholds_do_not_read_backdoored_references(apart: References) -> None:
    clean = replace(apart, backdoored=[])
    for values in ((0.1, 20), (0.45, 28), (0.6, 40)):
        with_them, without = (
            by_thresholds(apart, features(*values)),
            by_thresholds(clean, features(*values)),
        )
        assert (with_them.score, with_them.cuts, with_them.clean) == (
            without.score,
            without.cuts,
            without.clean,
        )
    assert min(by_thresholds(apart, features(0.5, 30)).backdoored) > 0.9


def test_the_rate_is_that_of_new_models_and_not_of_known_ones() -> None:
    """With ten clean models the lowest of each feature is a false positive of the others."""
    clean = [(i + 1.0, 10.0 - i) for i in range(10)]
    assert by_thresholds(references(clean), features(5, 5)).false_positives == 2


def test_the_calibration_says_where_the_threshold_comes_from(apart: References) -> None:
    decision, model = by_thresholds(apart, features(0.1, 20)), tiny_model(timesteps=1000)
    found = decision.calibration(apart, model)
    assert isinstance(found, Calibration)
    assert (found.n_clean, found.n_backdoored) == (20, 15)
    assert found.in_range
    assert found.threshold == decision.threshold == 0.95
    assert found.interval[0] <= found.false_positive_rate <= found.interval[1]
    elsewhere = decision.calibration(apart, tiny_model(timesteps=50))
    assert not elsewhere.in_range
    assert "schedule" in elsewhere.out_of_range[0]


def test_too_few_or_uneven_references_are_refused(apart: References) -> None:
    uneven = [{"uniformity": 0.1}, *apart.clean]
    with pytest.raises(ValueError, match="references need two"):
        References(apart.table, apart.clean[:1], [])
    with pytest.raises(ValueError, match="two of each"):
        by_forest(References(apart.table, apart.clean, apart.backdoored[:1]), features(0.1, 20))
    with pytest.raises(ValueError, match="the same features"):
        References(apart.table, uneven, [])


def test_a_calibration_without_features_has_no_references() -> None:
    table = table_of("elijah", {}, tiny_model(), [0.1, 0.2])
    assert References.of(table, "elijah", "quick", {}) is None
    assert References.of(table, "elijah", "quick", {"other": 1}) is None


def test_other_features_than_those_of_the_table_are_refused(apart: References) -> None:
    for decide in (by_forest, by_thresholds):
        with pytest.raises(ValueError, match="the references have"):
            decide(apart, {"uniformity": 0.1})
