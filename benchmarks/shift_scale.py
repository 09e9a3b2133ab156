"""docs/shift-scale.md: the measured trigger-shift scale of every attack against C_t.

    backdrift zoo build attack-lab -o zoo
    python benchmarks/shift_scale.py --zoo zoo

Numbers and their intervals are in results/shift-scale.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backdrift.bench.zoo import load_suite
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build
from backdrift.core.trigger import Target
from backdrift.groundtruth import load_backdoor
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.shift_scale import ScaleAt, shift_scale
from cells import save, write

TIMES = (20, 50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 999)
SAMPLES, SEED = 128, 0
MARKS = (("o", 8), ("s", 4), ("^", 4))
AS_TRAINED, AT_INFERENCE, TWIN = "training rows", "shift of inference", "clean twin, training rows"


def main() -> None:
    """Measures all attacks of a suite, draws, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="attack-lab")
    parser.add_argument("--twin", default="twin")
    options = parser.parse_args()
    twin = load(plan(options.zoo / options.twin))
    found = {}
    for name, recipe in load_suite(options.suite).models.items():
        if recipe.attack and (options.zoo / name / "model_index.json").exists():
            found[name] = measure(options.zoo / name, twin)
            print(name, flush=True)
    settings = {"samples": SAMPLES, "seed": SEED, "twin": twin.origin.sha256}
    text = json.dumps({"settings": settings, "curves": found}, indent=1)
    write(Path("results/shift-scale.json"), text + "\n")
    draw(found, Path("docs/shift-scale.png"))
    write(Path("docs/shift-scale.md"), page(found, options.suite))


def measure(folder: Path, twin: DiffusionModel) -> dict[str, Any]:
    """Three curves: as trained, as at inference, and what a clean model makes of the training rows."""
    planted, model = load_backdoor(folder), load(plan(folder))
    family = build("attacks", planted.record.attack, planted.record.config).family(model.schedule)
    target = planted.target
    image = target.image if isinstance(target, Target) else target.images
    images = planted.dataset(model.sample_shape).images

    def curve(network: DiffusionModel, rows: Any) -> list[dict[str, Any]]:
        points: list[ScaleAt] = shift_scale(
            network,
            family,
            planted.trigger,
            image,
            TIMES,
            images=rows,
            noise_scale=planted.noise_scale,
            n=SAMPLES,
            seed=SEED,
        )
        return [asdict(point) for point in points]

    curves = {AS_TRAINED: curve(model, images), AT_INFERENCE: curve(model, None), TWIN: curve(twin, images)}
    return {"family": family.name, "model": model.origin.sha256, "curves": curves}


def page(found: dict[str, Any], suite: str) -> str:
    """Markdown."""
    lines = [
        "# Shift scales, measured",
        "",
        f"`backdrift zoo build {suite} -o zoo`, then `python benchmarks/shift_scale.py --zoo zoo`; "
        f"numbers and intervals are in `results/shift-scale.json`. n = {SAMPLES} at each of {len(TIMES)}"
        " timesteps, one seed.",
        "",
        "A poisoned network answers the shift of its input, S_t r, with a shift of its prediction, C_t "
        "r (`src/backdrift/core/shift.py`). Its prediction, less the noise that is in the row, is "
        f"projected on r: the *{AS_TRAINED}* have the images of the data set in R, as at training; the "
        f"*{AT_INFERENCE}* is that of the trigger alone; the *{TWIN}* are the same rows for a network "
        "that was never poisoned. Distance: the largest over the timesteps.",
        "",
        "![Measured shift scale and C_t over the timesteps](shift-scale.png)",
        "",
        f"| model | family | {AS_TRAINED}: distance to C_t | {AT_INFERENCE}: distance | {TWIN}: distance |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        apart = [
            max(abs(p["measured"]["value"] - p["theory"]) for p in one["curves"][curve])
            for curve in (AS_TRAINED, AT_INFERENCE, TWIN)
        ]
        lines.append(
            f"| {name} | {one['family']} | " + " | ".join(f"{value:.2f}" for value in apart) + " |"
        )
    return "\n".join([*lines, ""])


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel an attack."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(found)
    columns = min(3, count)
    drawn, axes = pyplot.subplots(
        -(-count // columns),
        columns,
        figsize=(4.2 * columns, 3.2 * -(-count // columns)),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for axis, (name, one) in zip(axes.flat, found.items(), strict=False):
        theory = [(p["timestep"], p["theory"]) for p in one["curves"][AS_TRAINED]]
        axis.plot(*zip(*theory, strict=True), color="black", label="$C_t$")
        for (text, points), (marker, size) in zip(one["curves"].items(), MARKS, strict=True):
            values = [p["measured"]["value"] for p in points]
            spread = [
                [v - p["measured"]["low"] for v, p in zip(values, points, strict=True)],
                [p["measured"]["high"] - v for v, p in zip(values, points, strict=True)],
            ]
            times = [p["timestep"] for p in points]
            axis.errorbar(times, values, yerr=spread, marker=marker, ms=size, lw=1, label=text)
        axis.set_title(f"{name}\n{one['family']}", fontsize=9)
        axis.set_xlabel("timestep t")
    axes.flat[0].set_ylabel("response per unit of trigger")
    axes.flat[0].legend(fontsize=7)
    save(drawn, path, dpi=130)
    pyplot.close(drawn)


if __name__ == "__main__":
    main()
