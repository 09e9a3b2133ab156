"""Rates and areas by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backdrift.bench.runner import Result
from backdrift.bench.tables import (
    ALL,
    CLEAN,
    WEAK,
    Run,
    comparison_markdown,
    comparison_table,
    detection_table,
    markdown,
)
from backdrift.core.results import Environment

ENVIRONMENT = Environment(python="", platform="", device="cpu", threads=1, versions={})


def run(model: str, group: str, verdict: str | None, score: float | None, **value: Any) -> Run:
    content = {} if verdict is None else {"verdict": verdict, "score": score, "seconds": 2.0, **value}
    result = Result(
        version="",
        name=model,
        address="",
        status="failed" if verdict is None else "done",
        given={},
        value=content,
        seed=0,
        started="",
        seconds=0,
        evaluations=100,
        environment=ENVIRONMENT,
        cores=1,
        commit=None,
    )
    return Run("ours", model, group, "clean" if group == CLEAN else "baddiffusion", result)


RUNS = [
    run("c1", CLEAN, "NO EVIDENCE", 0.0),
    run("c2", CLEAN, "INCONCLUSIVE", 0.3),
    run("c3", CLEAN, "BACKDOORED", 0.8),
    run("p1", "patch", "BACKDOORED", 0.9, distances={"l2_r": 1.0, "cos_r": 0.5}, success={"asr_true": 1.0}),
    run("p2", "patch", "INCONCLUSIVE", 0.4, distances={"l2_r": 3.0, "cos_r": 0.7}),
    run("d1", "dense", None, None),
    run("w1", WEAK, "BACKDOORED", 0.9),
]


def test_a_row_for_every_group() -> None:
    rows = {row["group"]: row for row in detection_table(RUNS)}
    assert set(rows) == {CLEAN, ALL, "patch", "dense", WEAK, "attack baddiffusion"}
    clean, whole = rows[CLEAN], rows[ALL]
    assert (clean["n"], clean["flagged"].value, clean["wrong"]) == (3, pytest.approx(1 / 3), 2)
    assert "auroc" not in clean
    assert (whole["n"], whole["flagged"].value) == (3, pytest.approx(1 / 3))  # the weak one is apart
    assert (whole["wrong"], whole["inconclusive"], whole["failed"]) == (2, 1, 1)
    assert rows["patch"]["l2_r"] == 2.0
    assert rows["patch"]["cos_r"] == pytest.approx(0.6)
    assert rows["patch"]["asr_true"] == 1.0
    assert rows["dense"]["l2_r"] is None
    # patch scores .9 and .4 against clean 0, .3, .8: five of six pairs in order
    assert rows["patch"]["auroc"].value == pytest.approx(5 / 6)
    assert rows["dense"]["auroc"].value == 0.0  # without a score it counts as least suspicious
    text = markdown(detection_table(RUNS))
    assert text.count("\n") == len(rows) + 1
    assert all(line.count("|") == text.splitlines()[0].count("|") for line in text.splitlines())


def test_kinds_are_pooled_without_the_weak() -> None:
    rows = {row["group"]: row for row in detection_table(RUNS, {"hard": ["patch", "dense"]})}
    assert (rows["hard"]["n"], rows["hard"]["wrong"]) == (3, 2)


def test_others_are_compared_model_by_model() -> None:
    """Theirs is right on c2 and d1, where ours is not, wrong on p1, and was not run on p2 and w1."""
    theirs = [
        run("c1", CLEAN, "NO EVIDENCE", 0.0),
        run("c2", CLEAN, "NO EVIDENCE", 0.0),
        run("c3", CLEAN, "BACKDOORED", 0.9),
        run("p1", "patch", "NO EVIDENCE", 0.1),
        run("d1", "dense", "BACKDOORED", 0.9),
    ]
    both = RUNS + [replace(one, task="theirs") for one in theirs]
    rows = comparison_table(both, "ours", {"hard": ["patch", "dense"]})
    found = {row["group"]: (row["difference"].n, row["difference"].value) for row in rows}
    assert found[CLEAN] == (3, pytest.approx(-1 / 3))
    assert found["patch"] == (1, 1.0)
    assert found["dense"] == (1, -1.0)
    assert found["hard"] == found[ALL] == (2, 0.0)
    assert WEAK not in found
    assert comparison_markdown(rows, "ours").count("\n") == len(rows) + 1
