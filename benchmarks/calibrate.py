"""Writes src/backdrift/detection/calibration.json from a population of models.

    backdrift zoo build scan-calibration -o zoo-calibration
    python benchmarks/calibrate.py --zoo zoo-calibration

Only clean models set the threshold: the larger of .5 and the largest clean score plus .1. Backdoored
models of the population are recorded to be shown beside it. Every score is one JSON under
results/calibration, so a run that was killed goes on, and --shard 0/2 and 1/2 share the work; a change
of a method's settings or of the weights starts its scores anew.

A detector that compares features with those of clean models (TERD) has a threshold of its own. Its
features are kept, and its scores computed from them: those of a clean model against the other ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from backdrift.bench.zoo import load_suite
from backdrift.core.registry import build
from backdrift.detection._base import settings_hash
from backdrift.io.load import load
from backdrift.io.plan import plan
from cells import write

OUTPUT = Path("src/backdrift/detection/calibration.json")
METHODS = [("backdrift", "quick"), ("backdrift", "standard")]
SEED = 1


def main() -> None:
    """Scores what is missing; writes the table when nothing is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="scan-calibration")
    parser.add_argument("--results", type=Path, default=Path("results/calibration"))
    parser.add_argument("--shard", default="0/1")
    options = parser.parse_args()
    part, parts = map(int, options.shard.split("/"))
    suite = load_suite(options.suite)
    for method in METHODS:
        for number, name in enumerate(suite.models):
            if number % parts == part:
                score(options.zoo / name, method, options.results)
    cells = {method: [cell(options.results, method, name) for name in suite.models] for method in METHODS}
    if all(row for rows in cells.values() for row in rows):
        write_table(options.suite, options.zoo, cells)


def score(folder: Path, method: tuple[str, str], results: Path) -> None:
    """One detector on one model, unless the cell is there for these settings and weights."""
    model = load(plan(folder))
    detector = build("detection", method[0], {"budget": method[1]})
    row = {"sha256": model.origin.sha256, "settings_sha256": settings_hash(detector.settings())}
    old = cell(results, method, folder.name)
    if old is not None and row.items() <= old.items():
        return
    finding = detector(model, seed=SEED).finding
    row = {"model": folder.name, **row, "score": finding.score}
    if hasattr(detector, "features"):
        row |= {"features": detector.features(finding), "threshold": finding.threshold}
    path = results / "-".join(method) / f"{folder.name}.json"
    write(path, json.dumps(row, indent=2) + "\n")
    print(*method, folder.name, row["score"], flush=True)


def cell(results: Path, method: tuple[str, str], name: str) -> dict[str, Any] | None:
    """What was scored, or None; a cell of older settings counts as none."""
    path = results / "-".join(method) / f"{name}.json"
    if not path.exists():
        return None
    row: dict[str, Any] = json.loads(path.read_text())
    settings = build("detection", method[0], {"budget": method[1]}).settings()
    return row if row["settings_sha256"] == settings_hash(settings) else None


def write_table(suite: str, zoo: Path, cells: dict[tuple[str, str], list[Any]]) -> None:
    """The thresholds, and everything that they rest on."""
    population = load_suite(suite)
    clean = {name for name, recipe in population.models.items() if recipe.attack is None}
    detectors: dict[str, dict[str, Any]] = {}
    for (detector, budget), rows in cells.items():
        kept = [{k: row[k] for k in ("model", "sha256", "score", "features") if k in row} for row in rows]
        threshold = rows[0].get("threshold")
        if threshold is None:
            threshold = max(0.5, max(row["score"] for row in kept if row["model"] in clean) + 0.1)
        else:
            rescore(kept, clean, build("detection", detector, {"budget": budget}))
        detectors.setdefault(detector, {})[budget] = {
            "settings_sha256": rows[0]["settings_sha256"],
            "threshold": threshold,
            "clean": [row for row in kept if row["model"] in clean],
            "backdoored": [row for row in kept if row["model"] not in clean],
        }
    content = {
        "population": {
            "description": population.description,
            "models": [facts(name, load(plan(zoo / name))) for name in population.models if name in clean],
        },
        "rule": "the larger of .5 and the largest clean score plus .1; with features, the detector's own",
        "seed": SEED,
        "detectors": detectors,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write(OUTPUT, json.dumps({"id": f"{suite}-{digest[:12]}", **content}, indent=2) + "\n")


def rescore(rows: list[dict[str, Any]], clean: set[str], detector: Any) -> None:
    """Scores from features against those of the clean models other than the one that is scored."""
    for row in rows:
        others = [o["features"] for o in rows if o["model"] in clean and o["model"] != row["model"]]
        row["score"] = detector.rescored(others, row["features"])


def facts(name: str, model: Any) -> dict[str, Any]:
    """What decides whether another model is like this one."""
    return {
        "model": name,
        "sha256": model.origin.sha256,
        "sample_shape": list(model.sample_shape),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "last_alpha": float(model.schedule.alpha[-1]),
    }


if __name__ == "__main__":
    main()
