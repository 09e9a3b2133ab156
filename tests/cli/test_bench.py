"""``backdrift bench`` and ``zoo build`` as a user runs them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from backdrift.bench import _planting, zoo
from backdrift.bench.tasks import bench_suites, load_bench
from backdrift.detection import purediffusion

ZOO = """
description = "two models"
[models.clean]
shape = [1, 8, 8]
width = 8
steps = 2
batch_size = 4
[groups.patch.models.bad]
base = "clean"
steps = 2
batch_size = 4
attack = "baddiffusion"
trigger = "white-patch"
target = "hat"
"""
BENCH = """
description = "a detector and a measurement"
zoo = "population.toml"
[tasks.pure]
kind = "detect"
method = "purediffusion"
options = { budget = "quick" }
[tasks.utility]
kind = "evaluate"
models = ["b*"]
options = { samples = 24, steps = 2 }
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files; every model is measured on a few samples of a few steps, and inverted with one."""
    monkeypatch.setattr(zoo, "UTILITY", (32, 3))
    monkeypatch.setattr(_planting, "SAMPLES", 32)
    monkeypatch.setattr(_planting, "STEPS", 4)
    monkeypatch.setitem(purediffusion.STEPS, "quick", 1)
    (tmp_path / "population.toml").write_text(ZOO)
    path = tmp_path / "suite.toml"
    path.write_text(BENCH)
    return path


@pytest.mark.parametrize("name", bench_suites())
def test_every_shipped_benchmark_can_be_read(name: str) -> None:
    loaded, population = load_bench(name)
    assert loaded.description
    assert loaded.tasks
    assert population.models


def test_plan_run_status_table(cli: Any, suite: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ran = cli("bench", "plan", suite)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith("models ")
    assert "2 of    2 cells" in lines[0]
    assert "1 of    1 cells" in lines[2]
    assert "at most" in lines[-1]
    assert not folder.exists()

    (_, only, _) = cli("bench", "plan", suite, "--task", "utility").out.splitlines()
    assert "1 of    1 cells" in only
    ran = cli("bench", "run", suite, "-o", folder, "--task", "utility")
    assert (ran.code, ran.out) == (0, "3 cells, 0 failed\n"), ran.err
    assert "pure: 0 done, 0 failed, 2 missing" in cli("bench", "status", folder).out
    ran = cli("bench", "run", suite, "-o", folder)
    assert (ran.code, ran.out) == (0, "5 cells, 0 failed\n"), ran.err
    assert "pure, bad, seed 0" in ran.err
    status = cli("bench", "status", folder)
    assert status.out.splitlines() == [
        "models: 2 done, 0 failed, 0 missing",
        "pure: 2 done, 0 failed, 0 missing",
        "utility: 1 done, 0 failed, 0 missing",
    ]
    table = cli("bench", "table", folder).out.splitlines()
    assert table[0].startswith("| task | group | n |")
    assert [line.split(" | ")[:2] for line in table[2:4]] == [["| pure", "clean"], ["| pure", "weak"]]
    assert table[5].startswith("| task | model | seed | ASR | hits without trigger |")
    assert [line.split(" | ")[:3] for line in table[7:]] == [["| utility", "bad", "0"]]
    found = json.loads((folder / "cells" / "pure" / "bad-0.json").read_text())
    assert {"l2_r", "cos_r", "l2_mean", "norm_r"} <= set(found["value"]["distances"])
    assert found["given"]["options"] == {"budget": "quick"}
    assert found["resolved"]["budget"] == "quick"
    assert str(tmp_path) not in json.dumps(found)
    assert (folder / "cells" / "pure" / "evidence" / "bad-0" / "candidate-1" / "trigger.png").exists()
    measured = json.loads((folder / "cells" / "utility" / "bad-0.json").read_text())
    assert measured["value"]["measures"][0]["name"] == "ASR"

    ran = cli("bench", "table", folder, "--format", "csv", "-o", tmp_path / "table.csv")
    assert (ran.code, ran.out) == (0, ""), ran.err
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (asr,) = [row for row in rows if (row["task"], row["quantity"]) == ("utility", "ASR")]
    assert (asr["row"], asr["n"]) == ("bad", "24")
    assert [float(asr[k]) for k in ("value", "low", "high")] == [
        measured["value"]["measures"][0][k] for k in ("value", "low", "high")
    ]
    flags = [row["row"] for row in rows if (row["task"], row["quantity"]) == ("pure", "flagged")]
    assert flags == ["clean", "weak"]
    assert cli("bench", "table", folder, "-o", tmp_path / "no" / "table").code == 4

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.json")}
    again = cli("bench", "run", suite, "-o", folder, "-q")
    assert (again.code, again.out, again.err) == (0, "", "")
    del before[folder / "benchmark.json"]
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_failed_cell_is_shown_and_the_run_says_so(cli: Any, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "population.toml").write_text(ZOO.replace('target = "hat"', 'target = "class:none"'))
    folder = tmp_path / "out"
    ran = cli("bench", "run", suite, "-o", folder, "-q")
    assert (ran.code, ran.out) == (2, "")
    assert [line.split(" (see")[0] for line in ran.err.splitlines()] == [
        "failed: bad",
        "failed: pure, bad, seed 0",
        "failed: utility, bad, seed 0",
    ]
    models = folder / "zoo"
    ran = cli("zoo", "build", tmp_path / "population.toml", "-o", models, "-q")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"failed: {models / 'bad'}: ValueError: digits has no class 'none'")
    assert ran.err.count("\n") == 1
    status = cli("bench", "status", folder)
    assert "failed: bad: ValueError: digits has no class 'none'" in status.out
    assert "failed: pure, bad, seed 0: RuntimeError: needs bad, which failed" in status.out
    assert "pure: 1 done, 1 failed, 0 missing" in status.out
    assert cli("bench", "table", folder).code == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("budget", "budgets"), "no option 'budgets'"),
        (('method = "purediffusion"', 'method = "pure"'), "no detection plug-in 'pure'"),
        (("steps = 2", "step = 2"), "step"),
        (('models = ["b*"]', 'models = ["x*"]'), "no model is called 'x*'"),
        (("[tasks.pure]", "[task.pure]"), "task"),
        (("population.toml", "nothing.toml"), "no suite 'nothing.toml'"),
    ],
)
def test_a_mistake_is_named_in_one_line(cli: Any, suite: Path, change: tuple[str, str], word: str) -> None:
    suite.write_text(BENCH.replace(*change))
    ran = cli("bench", "plan", suite)
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1), ran.err
    assert word in ran.err


def test_a_folder_without_results(cli: Any, tmp_path: Path) -> None:
    for command in ("status", "table"):
        ran = cli("bench", command, tmp_path)
        assert (ran.code, ran.err.count("\n")) == (4, 1)
        assert "holds no results" in ran.err


def test_presets_are_listed_and_refused_in_one_line(cli: Any, tmp_path: Path) -> None:
    listed = cli("bench", "list")
    assert re.search(r"^attack +\d+ models, 1 tasks, cpu, smoke, gpu, paper: ", listed.out, re.MULTILINE)
    ran = cli("bench", "run", "smoke", "--preset", "paper", "-o", tmp_path / "out")
    assert (ran.code, ran.err) == (4, "backdrift: benchmark smoke has the presets cpu, not 'paper'\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_preset_does_not_begin(cli: Any, tmp_path: Path) -> None:
    ran = cli("bench", "run", "attack", "--preset", "gpu", "-o", tmp_path / "out")
    assert (ran.code, ran.err.count("\n")) == (4, 1)
    assert ran.err.startswith("backdrift: device 'cuda' is not usable here")
    assert not (tmp_path / "out").exists()
