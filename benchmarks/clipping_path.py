"""docs/clipping-path.md: where clipping leads triggered latents, beside the way they go without it.

    backdrift zoo build attack-lab -o zoo
    python benchmarks/clipping_path.py --zoo zoo

BadDiffusion's figure 11 on digits at 16x16. Numbers and their intervals are in
results/clipping-path.json; what is in it is not measured again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backdrift.bench.zoo import load_suite
from backdrift.core.registry import build
from backdrift.groundtruth import load_backdoor
from backdrift.io.evidence import save_images
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.bootstrap import Mean
from backdrift.metrics.draws import latents
from cells import write

RESULTS = Path("results/clipping-path.json")
N, STEPS, FRAMES, SEED = 32, 1000, 10, 0
IN_STRIP = 2
"""Samples in the picture, of the first model."""
WAYS = {"triggered": "with the trigger, clipped", "plain": "without it, clipped"}

Row = dict[str, Any]


def main() -> None:
    """Measures what is missing, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="attack-lab")
    parser.add_argument("--steps", type=int, default=STEPS, help="Of DDPM.")
    options = parser.parse_args()
    settings = {"suite": options.suite, "sampler": "ddpm", "steps": options.steps, "seed": SEED}
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = known["models"] if known.items() >= settings.items() else {}
    for name, recipe in load_suite(options.suite).models.items():
        there = recipe.attack == "baddiffusion" and (options.zoo / name / "model_index.json").exists()
        if there and name not in found:
            drawn = None if found else Path("docs/clipping-path.png")
            found[name] = measure(options.zoo / name, options.steps, drawn)
            write(RESULTS, json.dumps({**settings, "models": found}, indent=1) + "\n")
            print(name, *(f"{way} {shown(found[name][-1][way])}" for way in WAYS), flush=True)
    if not found:
        raise SystemExit(f"{options.zoo} has no model that BadDiffusion made of {options.suite}")
    write(Path("docs/clipping-path.md"), page(found, options.suite, options.steps))


def measure(folder: Path, steps: int, drawn: Path | None) -> list[Row]:
    """Positions of the clipped latents at every frame, some of which may go into a picture."""
    planted, model = load_backdoor(folder), load(plan(folder))
    clipping = build("repair", "clipping", {})(model, seed=SEED).hook

    def walk(triggered: bool, clipped: bool) -> tuple[torch.Tensor, list[int]]:
        return latents(
            model,
            planted.injection if triggered else None,
            sampler="ddpm",
            steps=steps,
            n=N,
            seed=SEED,
            frames=FRAMES,
            hook=clipping if clipped else None,
        )

    (there, times), (here, _) = walk(True, False), walk(False, False)
    away = (there - here).mean(dim=0)
    clipped = {way: walk(way == "triggered", True)[0] for way in WAYS}
    if drawn is not None:
        strips = torch.cat([rows[:IN_STRIP] for rows in (there, *clipped.values())])
        save_images(strips.flatten(0, 1), drawn, columns=len(times))
    rows = []
    for frame, time in enumerate(times):
        row: Row = {"timestep": time}
        for way, back in clipped.items():
            apart, mean = back[:, frame] - here[:, frame], Mean(SEED)
            mean.update((apart * away[frame]).sum(dim=(1, 2, 3)) / away[frame].square().sum())
            row[way] = asdict(mean.compute())
        rows.append(row)
    return rows


def shown(position: dict[str, float]) -> str:
    """With its interval."""
    return "{value:.2f} [{low:.2f}, {high:.2f}]".format(**position)


def page(models: dict[str, list[Row]], suite: str, steps: int) -> str:
    """Markdown."""
    first, frames = next(iter(models.items()))
    lines = [
        "# Where clipping leads triggered latents",
        "",
        f"`backdrift zoo build {suite} -o zoo`, then `python benchmarks/clipping_path.py --zoo zoo`; "
        f"numbers and intervals are in `{RESULTS}`. n = {N}, DDPM in {steps} steps, one seed, "
        "[95% interval]. From the same noise the same steps are done with and without the trigger. Their "
        "mean difference is the way to the target; the table says how far along it they are, on the "
        "average, when every state is clipped to [-1, 1]: 0 where samples without the trigger are when "
        "nothing is clipped, 1 where those with it are.",
        "",
        "| model | | " + " | ".join(f"t = {row['timestep']}" for row in frames) + " |",
        "|" + "---|" * (len(frames) + 2),
    ]
    for name, rows in models.items():
        for way, text in WAYS.items():
            cells = [f"{row[way]['value']:.2f}" for row in rows[:-1]]
            lines.append("| " + " | ".join([name, text, *cells, shown(rows[-1][way])]) + " |")
    lines += ["", f"![Latents of {first} on their way](clipping-path.png)", ""]
    about = f"{first}, {IN_STRIP} samples each: with the trigger; {'; '.join(WAYS.values())}."
    return "\n".join([*lines, about, ""])


if __name__ == "__main__":
    main()
