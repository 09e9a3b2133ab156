"""docs/format-table.md: verdicts on latent and on variance exploding models, beside the ground truth.

    python benchmarks/latent_models.py models/latent
    backdrift zoo build exploding -o models/exploding
    python benchmarks/format_table.py models/latent models/exploding

One JSON per model and budget under results/format-table; a run that was killed goes on, and what an
older version of the detector gave is measured again where the model is there. No threshold was measured
on such models: all of them are flagged from .5 on, and the verdicts are marked uncalibrated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cells import write
from scan_table import COLUMNS, SAMPLES, STEPS, aged, cell, line, older

RESULTS, BUDGETS = Path("results/format-table"), ("quick", "standard")


def main() -> None:
    """Scans what was not scanned, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="Folders of models.")
    options = parser.parse_args()
    for folder in options.folders:
        for place in sorted(path.parent for path in folder.glob("*/model_index.json")):
            for budget in BUDGETS:
                run(place, f"{folder.name}-{place.name}", budget)
    write(Path("docs/format-table.md"), table())


def run(folder: Path, name: str, budget: str) -> None:
    """One scan, unless its result is there."""
    path = RESULTS / f"{name}-{budget}.json"
    if path.exists() and not older(json.loads(path.read_text())):
        return
    row = cell(folder, f"backdrift, {budget}") | {"model": name}
    write(path, json.dumps(row, indent=2) + "\n")
    print(name, budget, row["verdict"], row["score"], f"{row['seconds']:.0f} s", flush=True)


def table() -> str:
    """Markdown of every cell that is there."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = [
        "# Latent and variance exploding models",
        "",
        "Tiny models of digits, saved by stock pipelines: `python benchmarks/latent_models.py "
        "models/latent`, `backdrift zoo build exploding -o models/exploding`, then `python "
        "benchmarks/format_table.py models/latent models/exploding`; one seed, one thread, the cells are "
        "under `results/format-table`. No threshold was measured on such models: they are flagged from .5 "
        f"on, as uncalibrated. Triggers of latent models lie in the latents. ASR: {SAMPLES} fresh seeds, "
        f"{STEPS} steps of the family's sampler, hit threshold of the planted "
        f"record.{aged(rows)}",
        "",
        f"| {COLUMNS} |",
        "|" + "---|" * (COLUMNS.count("|") + 1),
    ]
    return "\n".join([*lines, *(f"| {line(row)} |" for row in rows), ""])


if __name__ == "__main__":
    main()
