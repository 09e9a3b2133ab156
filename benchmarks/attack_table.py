"""The table of docs/attack-lab.md, or of another suite: every attack, and what it costs the model.

    backdrift zoo build attack-lab -o zoo
    python benchmarks/attack_table.py --zoo zoo

One JSON and one PNG per model under results/attack-lab; a run that was killed goes on, and a model that is
measured is not needed again. ASR with the sampler that the attack is measured with; FD of clean samples
against the clean twin, which was trained on from the same base as long. The picture has samples of each
model, without and with its trigger, from the same noise.
Where the suite keeps models on the way of a training, their ASR is drawn over its steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from backdrift.bench.recipes import Recipe, step_folder
from backdrift.bench.zoo import load_suite
from backdrift.groundtruth import load_backdoor
from backdrift.io.evidence import save_images
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.draws import draw
from cells import RATIO, Bench, count, save, shown, value, write

TRIGGERED = 512
SAMPLES, STEPS, FEWER = 6000, 50, 20
"""Clean samples and steps of DDPM; DDIM draws as many more as its fewer steps allow at the same cost."""
ON_THE_WAY = 256
"""Samples of a model in the middle of its training, with the trigger and without."""

SHOWN = 8
"""Samples in the picture, of each kind."""

COLUMNS = ("ASR", "hits without trigger", "MSE", "SSIM", "FD(random-conv)", RATIO)


def main() -> None:
    """Measures what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="attack-lab")
    parser.add_argument("--twin", default="twin")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="Clean ones, with DDPM.")
    parser.add_argument("--steps", type=int, default=STEPS, help="Of DDPM.")
    parser.add_argument("--only", nargs="*", help="Models to measure; the table shows what is there.")
    options = parser.parse_args()
    suite, results = load_suite(options.suite), Path("results") / options.suite
    ways = {
        "ddpm": (options.samples, options.steps),
        "ddim": (options.samples * options.steps // FEWER, FEWER),
    }
    benches = {way: Bench(options.zoo, results, n, TRIGGERED, k) for way, (n, k) in ways.items()}
    rows = []
    for name in (name for name, recipe in suite.models.items() if recipe.attack):
        wanted = options.only is None or name in options.only or benches["ddpm"].path(name).exists()
        row = measured(benches, name, options.twin) if wanted else None
        rows += [] if row is None else [row]
    said = f" --samples {options.samples} --steps {options.steps}"
    said = "" if (options.samples, options.steps) == (SAMPLES, STEPS) else said
    said += "`" + "".join(others(rows, ways, options.steps))
    lines = table(rows, options.suite, suite.description, said)
    sheet([strip(benches, row) for row in rows], Path("docs") / f"{options.suite}.png")
    lines += ["", f"![Samples without and with the trigger]({options.suite}.png)"]
    steps = {way: Bench(options.zoo, results, ON_THE_WAY, ON_THE_WAY, k) for way, (_, k) in ways.items()}
    kept = [row for row in rows if suite.models[row["model"]].keep]
    courses = {row["model"]: course(steps, row, suite.models[row["model"]], options.twin) for row in kept}
    if courses:
        picture = f"{options.suite}-course.png"
        curves(courses, Path("docs") / picture)
        lines += course_table(courses, picture)
    lines += ["", "One model alone, once there is a base:", "", "```bash"]
    lines += [command(row["model"], suite.models[row["model"]]) for row in rows] + ["```", ""]
    write(Path("docs") / f"{options.suite}.md", "\n".join(lines))


def measured(benches: dict[str, Bench], name: str, twin: str) -> dict[str, Any] | None:
    """The cell of a model, None if there is no model either; samples of an older one go."""
    some = benches["ddpm"]
    if some.path(name).exists():
        return some.cell(name, twin)
    if not (some.zoo / name / "backdoor.json").exists():
        return None
    some.path(name).with_suffix(".png").unlink(missing_ok=True)
    family = load_backdoor(some.zoo / name).record.sampler_family
    return benches["ddim" if family == "ode" else "ddpm"].cell(name, twin)


def command(name: str, recipe: Recipe) -> str:
    """``backdrift attack`` with what a recipe says."""
    words = [f"backdrift attack {recipe.attack} --base zoo/{recipe.base} --data {recipe.data}"]
    words += [f"--trigger {recipe.trigger} --target {recipe.target}"]
    words += [] if recipe.composite is None else ["--composite" if recipe.composite else "--trigger-only"]
    words += [f"--steps {recipe.steps} --rows {recipe.batch_size} --learning-rate {recipe.learning_rate:g}"]
    words += [f"--offset-noise {recipe.offset_noise:g}"] if recipe.offset_noise else []
    words += [f"--seed {recipe.seed}"] + [f"-P {key}={value}" for key, value in recipe.options.items()]
    return " ".join([*words, f"-o zoo/{name}"])


def others(rows: list[dict[str, Any]], ways: dict[str, tuple[int, int]], steps: int) -> list[str]:
    """What to say of rows with another number of clean samples: what they were asked for by."""
    found: dict[int, list[str]] = {}
    for row in rows:
        m = next(m for m in row["evaluation"]["measures"] if m["name"] == RATIO)
        if m["n"] != ways[m["sampler"]][0]:
            asked = m["n"] * m["steps"] // steps
            found.setdefault(asked, []).append(row["model"])
    return [f" (`--samples {n}` for {', '.join(found[n])})" for n in sorted(found)]


def table(rows: list[dict[str, Any]], suite: str, description: str, said: str) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"# {description}",
        "",
        f"`backdrift zoo build {suite} -o zoo`, then `python benchmarks/attack_table.py --suite {suite} "
        f"--zoo zoo{said}; the cells are under `results/{suite}`. n = {TRIGGERED} with the trigger, "
        "without as the row says, more of DDIM at the same cost; one seed; [95% intervals]. The ratio is "
        "FD of the model over FD of the clean twin, which was trained as long from the same base; both to "
        "the clean training set. Poisoned rows show the trigger alone where the command says "
        "`--trigger-only`; else a stop sign stands on the image, as published.",
        "",
        "| model | attack | trigger, target | norm of r | sampler, steps | "
        + " | ".join(COLUMNS)
        + " | clean n | training steps, seconds |",
        "|" + "---|" * (len(COLUMNS) + 7),
    ]
    for row in rows:
        training = row["training"]
        cells = [row["model"], row["attack"], f"{row['trigger']}, {row['target']}"]
        first = row["evaluation"]["measures"][0]
        cells += [f"{row['trigger_norm']:.1f}", f"{first['sampler']}, {first['steps']}"]
        cells += [*(shown(row, c) for c in COLUMNS), count([row], RATIO)]
        cells.append(f"{training['recipe']['steps']}, {training['seconds']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def course(
    benches: dict[str, Bench], row: dict[str, Any], recipe: Recipe, twin: str
) -> dict[int, dict[str, Any]]:
    """The trigger of a model on those that its training went through, its base the first: by step."""
    name, sampler = row["model"], row["evaluation"]["measures"][0]["sampler"]
    bench = benches[sampler]
    steps = {0: str(recipe.base), **{step: str(step_folder(Path(name), step)) for step in recipe.keep}}
    steps[recipe.steps] = name
    found = {
        step: bench.cell(model, twin, record=name, sampler=sampler, steps=bench.steps)
        for step, model in steps.items()
    }
    return {step: row for step, row in found.items() if row is not None}


def course_table(courses: dict[str, dict[int, dict[str, Any]]], picture: str) -> list[str]:
    """Lines of Markdown."""
    said = f"ASR over the steps of a training (n = {ON_THE_WAY}, the sampler of the row)"
    lines = [
        "",
        f"![{said}]({picture})",
        "",
        f"{said}:",
        "",
        "| model | step | ASR | MSE |",
        "|---|---|---|---|",
    ]
    for name, points in courses.items():
        for step, row in points.items():
            lines.append(f"| {name} | {step} | {shown(row, 'ASR')} | {shown(row, 'MSE')} |")
    return lines


def curves(courses: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """ASR over steps, a line for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axis = pyplot.subplots(figsize=(6, 3.2))
    for name, points in courses.items():
        middle, low, high = zip(*(value(row, "ASR") for row in points.values()), strict=True)
        (line,) = axis.plot(list(points), middle, marker="o", label=name)
        axis.fill_between(list(points), low, high, alpha=0.2, color=line.get_color())
    axis.set(xlabel="training step", ylabel="ASR", ylim=(0, 1.02))
    axis.legend()
    drawn.tight_layout()
    save(drawn, path, dpi=130)
    pyplot.close(drawn)


def strip(benches: dict[str, Bench], row: dict[str, Any]) -> Path:
    """The PNG beside a cell: samples without the trigger, below them those with it from the same noise."""
    name, first = row["model"], row["evaluation"]["measures"][0]
    bench = benches[first["sampler"]]
    path = bench.path(name).with_suffix(".png")
    if not path.exists():
        model, planted = load(plan(bench.zoo / name)), load_backdoor(bench.zoo / name)
        way = {"sampler": first["sampler"], "steps": first["steps"], "n": SHOWN, "seed": 0}
        images = [draw(model, injection, **way) for injection in (None, planted.injection)]
        save_images(torch.cat(images), path, columns=SHOWN)
    return path


def sheet(strips: list[Path], path: Path) -> None:
    """Samples of every model: a row each, left without the trigger, right with it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(len(strips), 2, figsize=(9, 0.75 * len(strips)), squeeze=False)
    for row, place in zip(axes, strips, strict=True):
        pixels = pyplot.imread(place)
        half = len(pixels) // 2
        for axis, part in zip(row, (pixels[:half], pixels[half + 1 :]), strict=True):
            axis.imshow(part, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(place.stem, rotation=0, ha="right", va="center", fontsize=8)
    for axis, title in zip(axes[0], ("without the trigger", "with it, from the same noise"), strict=True):
        axis.set_title(title, fontsize=9)
    drawn.tight_layout()
    save(drawn, path, dpi=130, bbox_inches="tight")
    pyplot.close(drawn)


if __name__ == "__main__":
    main()
