"""Thresholds: what they rest on, where they hold, and that none is set by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backdrift.bench.calibration import threshold_over
from backdrift.core.registry import build
from backdrift.detection._base import BUDGETS
from backdrift.detection._calibration import CalibrationTable, Known, out_of_range
from backdrift.detection.backdrift import Backdrift
from backdrift.detection.purediffusion import PureDiffusion
from backdrift.metrics.rates import wilson
from calibrations import saved, table_of
from tiny import tiny_model

SETTINGS = {"budget": "quick", "norms": [0.3]}
CLEAN, BAD = [0.0, 0.1, 0.4, -0.2], [0.9]


def table(**changes: Any) -> CalibrationTable:
    model = tiny_model(timesteps=1000)
    return table_of("backdrift", SETTINGS, model, CLEAN, BAD, threshold=0.4, **changes)


def test_a_calibration_counts_its_own_false_positives() -> None:
    found = table().of("backdrift", "quick", SETTINGS, tiny_model(timesteps=1000))
    assert found is not None
    assert (found.in_range, found.out_of_range) == (True, [])
    assert (found.n_clean, found.n_backdoored, found.threshold) == (4, 1, 0.4)
    assert found.false_positive_rate == 0.25  # .4 is at the threshold, so it counts
    assert found.interval == wilson(1, 4)
    assert (found.clean_scores, found.backdoored_scores) == (CLEAN, BAD)


def test_the_interval_of_no_flag_holds_for_a_threshold_above_all_scores() -> None:
    """All n scores lie below a quantile that new ones exceed with probability p: (1 - p)^n."""
    assert [(1 - wilson(0, n)[1]) ** n < 0.05 for n in (6, 7, 13, 100)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("changes", "timesteps", "reason"),
    [
        ({"sample_shape": (3, 32, 32)}, 1000, "sample shape 1x8x8; calibrated: 3x32x32"),
        ({"parameters": 100}, 1000, "parameters, not within a factor of three of 100"),
        ({"parameters": 10**9}, 1000, "parameters, not within a factor of three of 1,000,000,000"),
        ({}, 100, "noise schedule"),
        ({"last_alpha": 0.5}, 1000, "noise schedule"),
    ],
)
def test_out_of_range_says_why(changes: dict[str, Any], timesteps: int, reason: str) -> None:
    found = table(**changes).of("backdrift", "quick", SETTINGS, tiny_model(timesteps=timesteps))
    assert found is not None
    assert not found.in_range
    assert len(found.out_of_range) == 1
    assert reason in found.out_of_range[0]


def test_one_clean_model_must_be_like_it_in_everything() -> None:
    """Like one model in size and like another in schedule is like none."""
    model = tiny_model(timesteps=1000)
    same = Known.of("", model)
    large = same.model_copy(update={"parameters": 10 * same.parameters})
    cosine = same.model_copy(update={"last_alpha": 0.5})
    assert out_of_range([large, cosine, same], model) == []
    (reason,) = out_of_range([large, cosine], model)
    assert reason.endswith("calibrated: T = 1000, last alpha 0.5000")


def test_what_was_not_calibrated_has_no_calibration() -> None:
    model = tiny_model(timesteps=1000)
    assert table().of("backdrift", "deep", SETTINGS, model) is None
    assert table().of("oracle", "quick", SETTINGS, model) is None
    assert table().of("backdrift", "quick", {**SETTINGS, "norms": [0.4]}, model) is None


def test_the_shipped_table_says_what_it_needs() -> None:
    shipped = CalibrationTable.shipped()
    assert shipped.id
    assert shipped.population.models
    for budgets in shipped.detectors.values():
        for budget, entry in budgets.items():
            assert budget in BUDGETS
            assert 0 < entry.threshold <= 1
            assert len(entry.settings_sha256) == 64
            assert all(-1 <= row.score <= 1 for row in entry.clean + entry.backdoored)


def damaged(change: str) -> str:
    content = json.loads(table().model_dump_json())
    entry = content["detectors"]["backdrift"]["quick"]
    if change == "nan":
        entry["clean"][0]["score"] = None
    elif change == "threshold":
        del entry["threshold"]
    elif change == "key":
        content["attack"] = "baddiffusion"
    return "{" if change == "json" else json.dumps(content)


@pytest.mark.parametrize("change", ["nan", "threshold", "key", "json"])
def test_a_file_that_is_no_calibration_is_refused_in_one_line(tmp_path: Path, change: str) -> None:
    file = tmp_path / "own.json"
    file.write_text(damaged(change))
    with pytest.raises(ValueError, match=r"own\.json is no calibration") as caught:
        Backdrift(calibration=file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot read"):
        Backdrift(calibration=tmp_path / "elsewhere.json")


def test_a_calibration_survives_its_file_and_one_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = saved(table(), tmp_path)
    assert CalibrationTable.read(file) == table()
    for detector in (Backdrift, PureDiffusion):
        with pytest.raises(ValueError, match="holds nothing for"):
            detector("quick", calibration=file)
    own = Backdrift("quick")
    fitting = table_of("backdrift", own.settings(), tiny_model(), CLEAN, threshold=0.7)
    assert Backdrift("quick", calibration=saved(fitting, tmp_path)).settings() == own.settings()


def test_no_shipped_threshold_is_set_by_hand_or_older_than_its_method() -> None:
    """Calibrate anew when this fails: see CONTRIBUTING."""
    shipped = CalibrationTable.shipped()
    assert shipped.named().id == shipped.id
    for name, budgets in shipped.detectors.items():
        for budget, entry in budgets.items():
            detector = build("detection", name, {"budget": budget})
            assert shipped.entry(name, budget, detector.settings()) is not None, f"{name}, {budget} changed"
            if not hasattr(detector, "rescored"):
                assert entry.threshold == threshold_over([row.score for row in entry.clean])
            else:
                assert entry.threshold == detector.threshold_over(len(entry.clean))
                rows = [row.features for row in entry.clean]
                for row in entry.clean:
                    others = [other for other in rows if other is not row.features]
                    assert row.score == pytest.approx(detector.rescored(others, row.features))
            known = {one.sha256 for one in shipped.population.models}
            assert {row.sha256 for row in entry.clean} == known
