"""What a calibration makes of scores and of features."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdrift.bench.calibration import _entry, calibrate
from backdrift.detection._references import share_below
from backdrift.detection.elijah import Elijah
from tiny import tiny_checkpoint


def test_features_have_the_threshold_of_their_detector() -> None:
    """One feature, lower in model 0 than in all the others, and a backdoored model below them all."""
    values = [float(n) for n in range(40)]
    paths = [Path(f"model-{n}") for n in range(41)]
    results = {
        path: {"sha256": "", "score": 0.5, "features": {"uniformity, sde": value}}
        for path, value in zip(paths, [*values, -1.0], strict=True)
    }
    entry = _entry(Elijah("quick"), results, set(paths[:40]))
    assert entry.threshold == 0.95
    others = [{"uniformity, sde": value} for value in values[1:]]
    assert entry.clean[0].score == share_below(others, {"uniformity, sde": 0.0}) == 1
    assert [row.score >= entry.threshold for row in entry.clean] == [True, True] + 38 * [False]
    assert [row.score for row in entry.backdoored] == [1]


def test_too_few_to_compare_are_refused_before_any_work(tmp_path: Path) -> None:
    for seed in range(2):
        tiny_checkpoint(tmp_path / "models" / f"model-{seed}", seed=seed)
    output = tmp_path / "own.json"
    with pytest.raises(ValueError, match="terd compares each clean model with the others"):
        calibrate(tmp_path / "models", [("terd", "quick")], output, tmp_path / "cells")
    assert [p.name for p in tmp_path.iterdir()] == ["models"]
