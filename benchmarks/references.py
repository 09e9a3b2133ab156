"""Writes a table of reference models, clean and backdoored, for a detector that compares with them.

    backdrift zoo build scan-calibration -o zoo-calibration
    python benchmarks/references.py elijah --zoo zoo-calibration -o references.json
    backdrift detect elijah MODEL -P references=references.json

Which of the models are backdoored is read from the recipes of the suite, not from the checkpoints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backdrift.bench.zoo import load_suite
from backdrift.core.registry import build
from backdrift.detection._base import settings_hash
from backdrift.detection._references import Reference, References
from backdrift.io.load import load
from backdrift.io.plan import plan
from cells import write


def main() -> None:
    """Measures every model of a suite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="scan-calibration")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    suite = load_suite(options.suite)
    detector = build("detection", options.detector, {"budget": options.budget})
    rows = []
    for name, recipe in suite.models.items():
        model = load(plan(options.zoo / name))
        features = detector.features(detector(model, seed=options.seed).finding)
        rows.append(Reference.of(name, model, features, backdoored=recipe.attack is not None))
        print(name, features, flush=True)
    table = References(
        description=suite.description, settings_sha256=settings_hash(detector.settings()), models=rows
    )
    write(options.output, table.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
