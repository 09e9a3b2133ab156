"""Thresholds from a population of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backdrift.bench.runner import Cell, Outcome, Progress, Result, run_cells
from backdrift.core.registry import build
from backdrift.detection._calibration import (
    CalibrationTable,
    Entry,
    Known,
    Population,
    Scored,
    settings_hash,
)
from backdrift.groundtruth import FILE
from backdrift.io.files import replaced_file
from backdrift.io.load import load
from backdrift.io.plan import plan

RULE = "the larger of .5 and the largest clean score plus .1; with features, the detector's own"

Method = tuple[str, str]
"""A detector and a budget."""


def calibrate(
    models: Path,
    methods: Sequence[Method],
    output: Path,
    cells: Path,
    *,
    seed: int = 1,
    progress: Progress | None = None,
) -> CalibrationTable:
    """Scores every model of a folder and writes the thresholds.

    Only clean models set a threshold: the larger of .5 and the largest clean score plus .1. A model with
    a ``backdoor.json`` counts as backdoored, and is recorded to be shown beside. A detector that compares
    features with those of clean models has a threshold of its own; its features are kept, and its scores
    computed from them: those of a clean model against the other ones.

    Args:
        models: a folder of checkpoints, such as ``backdrift zoo build`` makes.
        output: the file; written by rename.
        cells: folder of one JSON per score. A run that was killed goes on; several share the work.
        seed: of the detectors' runs.

    Raises:
        ValueError: no clean model there, or fewer than three for a detector that compares features; an
            unknown detector or budget, or a score that failed.
        CheckpointError: a checkpoint that cannot be loaded, or draws latents.
    """
    folders = sorted(path for path in models.iterdir() if (path / "model_index.json").is_file())
    clean = [path for path in folders if not (path / FILE).exists()]
    if not clean:
        raise ValueError(f"{models} holds no clean checkpoint: name a folder of checkpoint folders")
    for name, budget in methods:
        if hasattr(build("detection", name, {"budget": budget}), "rescored") and len(clean) < 3:
            raise ValueError(f"{name} compares each clean model with the others: {models} needs three")
    known = {path: Known.of(path.name, load(plan(path).of_pixels("calibrate"))) for path in folders}
    rows = {
        method: {path: _cell(path, known[path].sha256, method, cells, seed) for path in folders}
        for method in dict.fromkeys(methods)
    }
    run_cells([cell for row in rows.values() for cell in row.values()], progress=progress)
    detectors: dict[str, dict[str, Entry]] = {}
    for (name, budget), row in rows.items():
        results = {path: _value(cell) for path, cell in row.items()}
        detector = build("detection", name, {"budget": budget})
        detectors.setdefault(name, {})[budget] = _entry(detector, results, set(clean))
    population = [known[path] for path in clean]
    shapes = sorted({"x".join(map(str, one.sample_shape)) for one in population})
    table = CalibrationTable(
        id="",
        population=Population(
            description=f"{len(clean)} clean models of {', '.join(shapes)}", models=population
        ),
        rule=RULE,
        seed=seed,
        detectors=detectors,
    ).named()
    with replaced_file(output) as fresh:
        fresh.write_text(table.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")
    return table


def threshold_over(clean: Sequence[float]) -> float:
    """The first half of ``RULE``."""
    return max(0.5, max(clean) + 0.1)


def _cell(folder: Path, sha256: str, method: Method, cells: Path, seed: int) -> Cell:
    detector = build("detection", method[0], {"budget": method[1]})
    settings = json.loads(json.dumps(detector.settings(), default=str))
    return Cell(
        name=f"{method[0]}, {method[1]}, {folder.name}",
        path=cells / "-".join(method) / f"{folder.name}.json",
        key=["calibrate", method[0], settings, sha256],
        given={"detector": method[0], "budget": method[1], "model": folder.name},
        work=partial(_score, detector, folder, settings, seed),
        seed=seed,
    )


def _score(
    detector: Any, folder: Path, settings: dict[str, Any], seed: int, progress: Progress | None
) -> Outcome:
    model = load(plan(folder))
    finding = detector(model, seed=seed, progress=progress).finding
    value: dict[str, Any] = {"score": finding.score, "sha256": model.origin.sha256}
    if hasattr(detector, "features"):
        value["features"] = detector.features(finding)
    return Outcome(resolved=settings, value=value, evaluations=finding.evaluations)


def _value(cell: Cell) -> dict[str, Any]:
    result: Result | None = cell.result()
    if result is None or result.status == "failed":
        error = "it was not run" if result is None else result.error
        raise ValueError(f"{cell.name}: {error}; remove {cell.path} to try again")
    return result.value


def _entry(detector: Any, results: dict[Path, dict[str, Any]], clean: set[Path]) -> Entry:
    rows = {
        path: Scored(
            model=path.name, sha256=value["sha256"], score=value["score"], features=value.get("features")
        )
        for path, value in results.items()
    }
    if hasattr(detector, "rescored"):
        rows = {
            path: row.model_copy(
                update={
                    "score": detector.rescored([rows[o].features for o in clean if o != path], row.features)
                }
            )
            for path, row in rows.items()
        }
        threshold = detector.threshold_over(len(clean))
    else:
        threshold = threshold_over([rows[path].score for path in clean])
    return Entry(
        settings_sha256=settings_hash(detector.settings()),
        threshold=threshold,
        clean=[row for path, row in rows.items() if path in clean],
        backdoored=[row for path, row in rows.items() if path not in clean],
    )
