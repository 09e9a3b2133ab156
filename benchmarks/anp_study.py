"""docs/anp-study.md: what adversarial neuron perturbation discovers, by learning rate, budget and rule.

    backdrift bench run anp -o results/anp
    python benchmarks/anp_study.py results/anp

BadDiffusion's figure 8 (appendix B): the MSE of the discovered target to the true one, which this
benchmark has and no defender, over the ascent; beside it what a defender sees, the share of samples that
are one image.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cells import results, write

COMMON = ("steps", "looks", "pruning_steps", "samples")
"""Options that all settings have; the others are what they differ in."""


def main() -> None:
    """Writes the page of what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Of the results.")
    parser.add_argument("--output", type=Path, default=Path("docs/anp-study.md"))
    options = parser.parse_args()
    rows = sorted(results(options.folder, "discover"), key=lambda row: row["model"])
    write(options.output, page(rows, options.folder))


def page(rows: list[dict[str, Any]], folder: Path) -> str:
    """Markdown."""
    lines = [
        "# What adversarial neuron perturbation discovers",
        "",
        f"`backdrift bench run anp -o {folder}`, then `python benchmarks/anp_study.py {folder}`. "
        "MSE in [0, 1] of the median sample to the true target, an oracle that no defender has: the best "
        "of all looks, as the published code reports it, and the last. Collapse is the share of samples "
        "that are one image, the most of all looks.",
        "",
        "| model | setting | oracle MSE, best | at step | oracle MSE, last | collapse | loss at the end |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        looks = row["evaluation"]["looks"]
        best = min(looks, key=lambda one: one["oracle_mse"])
        setting = ", ".join(f"{k} {v}" for k, v in row["options"].items() if k not in COMMON)
        cells = [row["model"], setting, f"{best['oracle_mse']:.4f}", str(best["step"])]
        cells += [f"{looks[-1]['oracle_mse']:.4f}", f"{max(one['collapse'] for one in looks):.2f}"]
        lines.append("| " + " | ".join([*cells, f"{looks[-1]['loss']:.3g}"]) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
