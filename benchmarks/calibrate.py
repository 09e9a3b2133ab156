"""Writes src/backdrift/detection/calibration.json from a population of models.

    backdrift zoo build scan-calibration -o zoo-calibration
    python benchmarks/calibrate.py --zoo zoo-calibration

Only clean models set the threshold: the larger of .5 and the largest clean score plus .1. Backdoored
models of the population are recorded to be shown beside it. Scores are kept by weight hash, so a run
that was killed goes on; a change of a method's settings starts its scores anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from backdrift.bench.zoo import load_suite
from backdrift.core.registry import build
from backdrift.detection._base import settings_hash
from backdrift.io.load import load
from backdrift.io.plan import plan

OUTPUT = Path("src/backdrift/detection/calibration.json")
METHODS = [("backdrift", "quick"), ("backdrift", "standard")]
SEED = 1


def main() -> None:
    """Scores what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="scan-calibration")
    options = parser.parse_args()
    suite = load_suite(options.suite)
    old = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"detectors": {}}
    models: list[dict[str, Any]] = []
    detectors: dict[str, dict[str, Any]] = {}
    for detector, budget in METHODS:
        method = build("detection", detector, {"budget": budget})
        entry = old["detectors"].get(detector, {}).get(budget, {})
        same = entry.get("settings_sha256") == settings_hash(method.settings())
        known = {row["sha256"]: row for row in entry.get("clean", []) + entry.get("backdoored", [])}
        rows: dict[str, list[dict[str, Any]]] = {"clean": [], "backdoored": []}
        for name, recipe in suite.models.items():
            model = load(plan(options.zoo / name))
            row = known.get(model.origin.sha256) if same else None
            if row is None:
                score = method(model, seed=SEED).finding.score
                row = {"model": name, "sha256": model.origin.sha256, "score": score}
                print(detector, budget, name, score, flush=True)
            rows["backdoored" if recipe.attack else "clean"].append(row)
            if (detector, budget) == METHODS[0] and recipe.attack is None:
                models.append(facts(name, model))
        highest = max(row["score"] for row in rows["clean"])
        detectors.setdefault(detector, {})[budget] = {
            "settings_sha256": settings_hash(method.settings()),
            "threshold": max(0.5, highest + 0.1),
            **rows,
        }
    content = {
        "population": {"description": suite.description, "models": models},
        "rule": "the larger of .5 and the largest clean score plus .1",
        "seed": SEED,
        "detectors": detectors,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    text = json.dumps({"id": f"{options.suite}-{digest[:12]}", **content}, indent=2) + "\n"
    temporary = OUTPUT.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, OUTPUT)


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
