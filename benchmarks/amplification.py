"""docs/amplification.md: ASR of true and reinforced triggers over the steps of training.

    backdrift bench run amplification -o results/amplification
    python benchmarks/amplification.py results/amplification

Every model of the suite at the steps that it kept, and the clean base at 0 with the same trigger, optimiser
and ball: the control.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from backdrift.bench.tasks import open_bench
from cells import count, results, save, value, write

RADIUS = 0.2
VARIANTS = ("attack", "scale", "purediffusion")
WANTED = (0.95, 0.5)
"""ASR of the reinforced trigger from, of the original below, between 1/20 and 1/5 of the steps."""

Row = dict[str, Any]


def main() -> None:
    """Writes page and figure of what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Of the results.")
    parser.add_argument("--output", type=Path, default=Path("docs/amplification.md"))
    options = parser.parse_args()
    models = open_bench(options.folder).zoo.models
    found = results(options.folder, "amplify")
    rows = [row | {"steps": models[row["model"]].steps} for row in found]
    picture = options.output.with_suffix(".png")
    write(options.output, page(rows, options.folder, picture.name))
    if rows:
        figure(rows, picture)


def rate(row: Row, name: str) -> str:
    """A measure with its interval."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*value(row, name))


def page(rows: list[Row], folder: Path, picture: str) -> str:
    """Markdown."""
    lines = [
        "# Reinforced triggers over the steps of training",
        "",
        f"`backdrift bench run amplification -o {folder}`, then `python benchmarks/amplification.py "
        f"{folder}`. L-infinity distance to the true trigger at most {RADIUS}, n = {count(rows, 'ASR')} on "
        "the same seeds, the attack's sampler, [95% intervals]. Step 0 is the clean base, reinforced by "
        "the same optimiser in the same ball: a gain counts above that row alone.",
        "",
        f"![ASR over the steps]({picture})",
        "",
        "| model | trigger, target | step | variant | ASR | ASR reinforced | MSE | MSE reinforced "
        "| L2 (norm of r) | seconds |",
        "|" + "---|" * 10,
    ]
    order = {variant: number for number, variant in enumerate(VARIANTS)}
    for row in sorted(rows, key=lambda r: (r["model"], r["step"], order[r["task"]])):
        found = row["evaluation"]
        means = [f"{value(row, name)[0]:.4f}" for name in ("MSE", "MSE reinforced")]
        distance = f"{found['distance']['l2']:.2f} ({found['distance']['norm']:.1f})"
        cells = [row["model"], f"{found['trigger']}, {found['target']}", f"{row['step']} of {row['steps']}"]
        cells += [row["task"], rate(row, "ASR"), rate(row, "ASR reinforced"), *means, distance]
        lines.append("| " + " | ".join([*cells, f"{found['seconds']:.0f}"]) + " |")
    return "\n".join([*lines, "", *(f"- {text}" for text in verdicts(rows)), ""])


def verdicts(rows: list[Row]) -> list[str]:
    """Whether the claim of arXiv 2502.19047 was seen, worked out for each model."""
    found = []
    for model in sorted({row["model"] for row in rows}):
        mine = [row for row in rows if row["model"] == model]
        control = {r["task"]: value(r, "ASR reinforced")[0] for r in mine if r["step"] == 0}
        early = [r for r in mine if 1 / 20 <= r["step"] / r["steps"] <= 1 / 5]
        reached = [
            f"{r['task']} at {r['step']} of {r['steps']} steps"
            for r in early
            if value(r, "ASR")[0] < WANTED[1]
            and value(r, "ASR reinforced")[0] >= WANTED[0]
            and control.get(r["task"], 1.0) < WANTED[1]
        ]
        said = "yes, " + "; ".join(reached) if reached else "not so" if early else "not measured"
        found.append(
            f"{model}: ASR of {WANTED[0]} or more where that of the original is below {WANTED[1]}, "
            f"between 1/20 and 1/5 of the steps: {said}. Control (clean base, reinforced): "
            + ", ".join(f"{name} {value:.3f}" for name, value in sorted(control.items()))
        )
    return found


def figure(rows: list[Row], path: Path) -> None:
    """ASR over the share of the steps, one panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = sorted({row["model"] for row in rows})
    drawing, axes = pyplot.subplots(
        1, len(models), figsize=(3.6 * len(models), 3.2), sharey=True, squeeze=False
    )
    for axis, model in zip(axes[0], models, strict=True):
        for variant in VARIANTS:
            mine = [r for r in rows if r["model"] == model and r["task"] == variant]
            mine.sort(key=lambda r: r["step"])
            at = [r["step"] / r["steps"] for r in mine]
            axis.plot(at, [value(r, "ASR reinforced")[0] for r in mine], "o-", label=variant)
            if variant == VARIANTS[0]:
                axis.plot(at, [value(r, "ASR")[0] for r in mine], "k.--", label="original")
        axis.set(title=model, xlabel="share of the training steps", ylim=(-0.03, 1.03))
        axis.title.set_fontsize(9)
    axes[0][0].set_ylabel("ASR")
    axes[0][-1].legend(fontsize=8)
    drawing.tight_layout()
    save(drawing, path, dpi=110)
    pyplot.close(drawing)


if __name__ == "__main__":
    main()
