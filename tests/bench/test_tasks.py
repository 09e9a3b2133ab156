"""What a cell of a benchmark keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from backdrift.bench import _planting, _work
from backdrift.bench.estimate import MEASURED, estimate
from backdrift.bench.recipes import Recipe, make
from backdrift.bench.tasks import Opened, Task, load_bench
from backdrift.bench.zoo import Suite, model_cells
from backdrift.core.results import Evidence
from backdrift.detection._base import Detection
from report.sample import report
from tiny import SHAPE, tiny_checkpoint


class Finds:
    """A detector that found a trigger with a noise scale."""

    def settings(self) -> dict[str, Any]:
        return {"budget": "quick"}

    def __call__(self, model: object, **_: object) -> Detection:
        trigger, scale = np.zeros(SHAPE, np.float32), np.full(SHAPE, 0.5, np.float32)
        some = np.zeros((9, *SHAPE), np.float32)
        found = Evidence("weights", trigger, trigger, some - 1, some + 1, "biased ddpm, 25 steps", scale)
        return Detection(report().findings[0], found)


def test_evidence_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_work, "build", lambda *_: Finds())
    model = tiny_checkpoint(tmp_path / "model")
    path = tmp_path / "cells" / "model-0.json"
    _work.detect(Task(kind="detect", method="terd"), model, 0, path, "cpu", None)
    kept = path.parent / "evidence" / "model-0" / "candidate-1"
    assert load_file(kept / "scale.safetensors")["scale"].max() == 0.5
    with Image.open(kept / "samples.png") as picture:  # plain noise above, with the trigger below
        grid = np.asarray(picture)
    height, width = SHAPE[1:]
    assert grid.shape == (2 * height + 1, 8 * width + 7)
    assert grid[:height, :width].max() == 0
    assert grid[-height:, -width:].min() == 255


def test_an_evaluation_says_its_seed_and_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_planting, "STEPS", 2)
    planted = {"attack": "baddiffusion", "trigger": "white-patch", "target": "hat"}
    make(Recipe(shape=SHAPE, width=8, steps=2, batch_size=4, **planted), tmp_path / "model")
    task = Task(kind="evaluate", options={"samples": 20, "steps": 2})
    outcome = _work.measure(task, tmp_path / "model", 3, tmp_path / "x.json", "cpu", None)
    assert (outcome.resolved["seed"], outcome.resolved["sampler"]) == (3, "ddpm")
    assert {measure["seed"] for measure in outcome.value["measures"]} == {3}


def test_an_attack_with_a_sampler_of_its_own_is_estimated_twice() -> None:
    suite, _ = load_bench("smoke")
    lines = []
    for attack in ("baddiffusion", "trojdiff"):
        zoo = Suite(description="", models={"a": Recipe(attack=attack, trigger="cross", target="hat")})
        cells = model_cells(zoo, Path("nowhere")).values()
        lines += estimate(suite, zoo, cells, pace=lambda recipe: 1.0)
    assert lines[1].evaluations - lines[0].evaluations == MEASURED


def test_models_elsewhere_are_found_before_there_is_a_folder(tmp_path: Path) -> None:
    suite, population = load_bench("smoke")
    opened = Opened(suite=suite, zoo=population, models="../models")
    (cell, *_) = opened.cells(tmp_path / "results")
    assert cell.path == tmp_path / "models" / "clean.json"
