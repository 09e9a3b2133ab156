"""docs/repair-table.md: every repair on every model, by the ground truth that none of them sees.

    backdrift bench run repair -o results/repair
    python benchmarks/repair_table.py results/repair

Each model is scanned; a repair is told the evidence of that scan alone. Then ASR of the true trigger, of
one that was reinforced on the model before, and of one reinforced again on the repaired model; FD beside
that of the model before; the verdict of a second scan. A clean model is measured with the trigger of an
attacked one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cells import RATIO, count, results, shown, value, write

COLUMNS = (
    "ASR",
    "hits without trigger",
    "ASR reinforced before",
    "ASR reinforced again",
    "FD(random-conv)",
    RATIO,
)

Row = dict[str, Any]


def main() -> None:
    """Writes the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Of the results.")
    parser.add_argument("--output", type=Path, default=Path("docs/repair-table.md"))
    options = parser.parse_args()
    rows = sorted(results(options.folder, "repair"), key=lambda row: row["model"])
    write(options.output, table(rows, options.folder))


def table(rows: list[Row], folder: Path) -> str:
    """Markdown."""
    lines = [
        "# Repairs",
        "",
        f"`backdrift bench run repair -o {folder}`, then `python benchmarks/repair_table.py {folder}`. A "
        "repair is told what a scan of the model found, never the truth. n = "
        f"{count(rows, 'ASR')} with a trigger, {count(rows, RATIO)} without, one seed; "
        "[95% intervals]. *Reinforced before*: ASR of a trigger that was reinforced on the model before "
        "the repair (L-infinity .2); *again*: of one reinforced on the repaired model. The ratio is FD "
        "after over FD before, paired. A clean model is measured with the trigger of an attacked one. "
        "Repairs at inference leave the weights, so there is no second scan.",
        "",
        "| model | attack | repair | ASR before | "
        + " | ".join(COLUMNS)
        + " | seconds | real images | scan before, after | bar |",
        "|" + "---|" * (len(COLUMNS) + 8),
    ]
    for row in rows:
        found = row["evaluation"]
        cells = [row["model"], found["attack"], row["task"], f"{value(row, 'ASR before')[0]:.3f}"]
        cells += [shown(row, c) for c in COLUMNS]
        cells += [f"{found['record']['seconds']:.0f}", str(found["record"]["images"])]
        scans = f"{found['verdict_before']}, {found['verdict_after'] or '-'}"
        cells += [scans, "yes" if passes(row) else "no"]
        lines.append("| " + " | ".join(cells) + " |")
    about = "Bar: ASR at most .02 above the hits without trigger, upper end of the FD ratio at most 1.10."
    return "\n".join([*lines, "", about, ""])


def passes(row: Row) -> bool:
    """The bar for ours; the others are held to it as well."""
    excess = value(row, "ASR")[0] - value(row, "hits without trigger")[0]
    return excess <= 0.02 and value(row, RATIO)[2] <= 1.10


if __name__ == "__main__":
    main()
