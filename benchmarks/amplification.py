"""docs/amplification.md: ASR of true and reinforced triggers over the steps of training.

    backdrift zoo build amplification -o zoo
    python benchmarks/amplification.py --zoo zoo

Every model of the suite at the steps that it kept, and the clean base at 0 with the same trigger, optimiser
and ball: the control. One JSON per model, step and variant under results/amplification; a run that was
killed goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from backdrift.amplify import Amplify, Ball
from backdrift.bench.zoo import Suite, load_suite
from backdrift.core.sampling import usual_sampler
from backdrift.groundtruth import load_backdoor
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.draws import Plan
from cells import write

SUITE, SAMPLES, STEPS, RADIUS, SEED = "amplification", 256, 100, 0.2, 0
VARIANTS = ("attack", "scale", "purediffusion")
WANTED = (0.95, 0.5)
"""ASR of the reinforced trigger from, of the original below, between 1/20 and 1/5 of the steps."""

Row = dict[str, Any]


def main() -> None:
    """Measures what is missing, then writes page and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="Models to measure; the page shows what is there.")
    parser.add_argument("--shard", default="0/1", help="i/n: measure every n-th cell only.")
    options = parser.parse_args()
    suite, results = load_suite(SUITE), Path("results") / SUITE
    number, count = map(int, options.shard.split("/"))
    cells = [(m, s, v) for m in attacked(suite) for s in steps_of(suite, m) for v in VARIANTS]
    for index, (model, step, variant) in enumerate(cells):
        if index % count == number and (options.only is None or model in options.only):
            cell(options.zoo, results, suite, model, step, variant)
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    write(Path("docs") / f"{SUITE}.md", page(rows))
    if rows:
        figure(rows, Path("docs") / f"{SUITE}.png")


def attacked(suite: Suite) -> list[str]:
    """Names of the models that have a backdoor."""
    return [name for name, recipe in suite.models.items() if recipe.attack]


def steps_of(suite: Suite, model: str) -> list[int]:
    """0 for the base, what was kept, and the end."""
    recipe = suite.models[model]
    return [0, *recipe.keep, recipe.steps]


def checkpoint(zoo: Path, suite: Suite, model: str, step: int) -> Path:
    """Where the model of a step lies."""
    recipe = suite.models[model]
    if step == 0:
        return zoo / str(recipe.base)
    return zoo / model if step == recipe.steps else zoo / f"{model}.steps" / f"{step:06d}"


def cell(zoo: Path, results: Path, suite: Suite, model: str, step: int, variant: Any) -> None:
    """One model at one step, reinforced by one variant, unless it is there."""
    path, folder = results / f"{model}@{step:06d}-{variant}.json", checkpoint(zoo, suite, model, step)
    if path.exists() or not (folder / "model_index.json").exists() or not (zoo / model).exists():
        return
    planted, loaded = load_backdoor(zoo / model), load(plan(folder))
    how = Plan(SAMPLES, usual_sampler(planted.record.sampler_family, loaded.schedule), STEPS, SEED)
    method = Amplify(variant)
    found = method(loaded, planted, Ball("linf", RADIUS), seed=SEED)
    measures = {m.name: m.model_dump() for m in found.compare(loaded, planted, how)}
    row: Row = {
        "model": model,
        "attack": planted.record.attack,
        "trigger": planted.record.trigger,
        "target": planted.record.target,
        "step": step,
        "steps": suite.models[model].steps,
        "variant": variant,
        "weights_sha256": loaded.origin.sha256,
        "distance": {"linf": found.linf, "l2": found.l2, "norm": float(planted.shift.norm())},
        "evaluations": found.evaluations,
        "seconds": found.seconds,
        "measures": measures,
    }
    write(path, json.dumps(row, indent=2) + "\n")
    print(path.name, rate(row, "ASR"), rate(row, "ASR reinforced"), flush=True)


def rate(row: Row, name: str) -> str:
    """A measure with its interval."""
    m = row["measures"][name]
    return f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"


def page(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "# Reinforced triggers over the steps of training",
        "",
        f"`backdrift zoo build {SUITE} -o zoo`, then `python benchmarks/amplification.py --zoo zoo`; the "
        f"cells are under `results/{SUITE}`. L-infinity distance to the true trigger at most {RADIUS}, "
        f"n = {SAMPLES} on the same seeds, {STEPS} steps of the attack's sampler, [95% intervals]. Step 0 "
        "is the clean base, reinforced by the same optimiser in the same ball: a gain counts above that "
        "row alone.",
        "",
        f"![ASR over the steps]({SUITE}.png)",
        "",
        "| model | trigger, target | step | variant | ASR | ASR reinforced | MSE | MSE reinforced "
        "| L2 (norm of r) | seconds |",
        "|" + "---|" * 10,
    ]
    order = {variant: number for number, variant in enumerate(VARIANTS)}
    for row in sorted(rows, key=lambda r: (r["model"], r["step"], order[r["variant"]])):
        means = [f"{row['measures'][name]['value']:.4f}" for name in ("MSE", "MSE reinforced")]
        distance = f"{row['distance']['l2']:.2f} ({row['distance']['norm']:.1f})"
        cells = [row["model"], f"{row['trigger']}, {row['target']}", f"{row['step']} of {row['steps']}"]
        cells += [row["variant"], rate(row, "ASR"), rate(row, "ASR reinforced"), *means, distance]
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |")
    return "\n".join([*lines, "", *(f"- {text}" for text in verdicts(rows)), ""])


def verdicts(rows: list[Row]) -> list[str]:
    """Whether the claim of arXiv 2502.19047 was seen, worked out for each model."""
    found = []
    for model in sorted({row["model"] for row in rows}):
        mine = [row for row in rows if row["model"] == model]
        control = {r["variant"]: r["measures"]["ASR reinforced"]["value"] for r in mine if r["step"] == 0}
        reached = [
            f"{r['variant']} at {r['step']} of {r['steps']} steps"
            for r in mine
            if 1 / 20 <= r["step"] / r["steps"] <= 1 / 5
            and r["measures"]["ASR"]["value"] < WANTED[1]
            and r["measures"]["ASR reinforced"]["value"] >= WANTED[0]
            and control.get(r["variant"], 1.0) < WANTED[1]
        ]
        said = "yes, " + "; ".join(reached) if reached else "not so"
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
            mine = [r for r in rows if r["model"] == model and r["variant"] == variant]
            mine.sort(key=lambda r: r["step"])
            at = [r["step"] / r["steps"] for r in mine]
            axis.plot(at, [r["measures"]["ASR reinforced"]["value"] for r in mine], "o-", label=variant)
            if variant == VARIANTS[0]:
                axis.plot(at, [r["measures"]["ASR"]["value"] for r in mine], "k.--", label="original")
        axis.set(title=model, xlabel="share of the training steps", ylim=(-0.03, 1.03))
        axis.title.set_fontsize(9)
    axes[0][0].set_ylabel("ASR")
    axes[0][-1].legend(fontsize=8)
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


if __name__ == "__main__":
    main()
