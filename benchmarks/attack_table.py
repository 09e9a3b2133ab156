"""The table of docs/attack-table.md: every attack of the suite attack-lab, and what it costs the model.

    backdrift zoo build attack-lab -o zoo
    python benchmarks/attack_table.py --zoo zoo

One JSON per model under results/attack-lab, written by rename; a run that was killed goes on. ASR with the
sampler that the attack is measured with; FD of clean samples against the clean twin, which was trained on
from the same base as long.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from backdrift.bench.zoo import load_suite
from backdrift.data import load_dataset
from backdrift.evaluate import DEFAULT_SAMPLERS, Plan, evaluate
from backdrift.groundtruth import load_backdoor
from backdrift.io.load import load
from backdrift.io.plan import plan

SAMPLES, STEPS, SEED = 2000, 100, 0
COLUMNS = ("ASR", "hits without trigger", "MSE", "SSIM", "FD(random-conv)", "FD(random-conv) ratio")


def main() -> None:
    """Measures what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="attack-lab")
    parser.add_argument("--twin", default="twin")
    parser.add_argument("--results", type=Path, default=Path("results/attack-lab"))
    parser.add_argument("--output", type=Path, default=Path("docs/attack-table.md"))
    options = parser.parse_args()
    suite = load_suite(options.suite)
    attacked = [name for name, recipe in suite.models.items() if recipe.attack]
    for name in attacked:
        path = options.results / f"{name}.json"
        if (options.zoo / name).is_dir() and not path.exists():
            row = measure(options.zoo / name, options.zoo / options.twin)
            write(path, row)
            print(name, *(f"{c} {shown(row, c)}" for c in COLUMNS), flush=True)
    rows = [json.loads(p.read_text()) for n in attacked if (p := options.results / f"{n}.json").exists()]
    options.output.write_text(table(rows, suite.description))


def measure(folder: Path, twin: Path) -> dict[str, Any]:
    """One model beside its clean twin."""
    planted = load_backdoor(folder)
    record = planted.record
    how = Plan(SAMPLES, DEFAULT_SAMPLERS[record.sampler_family], STEPS, SEED)
    model, other = load(plan(folder)), load(plan(twin))
    data = load_dataset(record.data, model.sample_shape)
    found = evaluate(model, planted, data.images, how, reference=data.name, clean_twin=other)
    settings = {"attack": record.attack, "trigger": record.trigger, "target": record.target}
    settings |= {"config": record.config, "trigger_norm": record.trigger_norm, "training": record.training}
    return {"model": folder.name, **settings, "evaluation": found.model_dump(mode="json")}


def write(path: Path, row: dict[str, Any]) -> None:
    """JSON by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(row, indent=2) + "\n")
    os.replace(temporary, path)


def shown(row: dict[str, Any], name: str) -> str:
    """Value and 95% interval of one measure."""
    for m in row["evaluation"]["measures"]:
        if m["name"] == name:
            return f"{m['value']:.3g} [{m['low']:.3g}, {m['high']:.3g}]"
    return ""


def table(rows: list[dict[str, Any]], description: str) -> str:
    """Markdown."""
    lines = [
        "# Every attack on digits",
        "",
        f"{description}. `backdrift zoo build attack-lab -o zoo`, then "
        "`python benchmarks/attack_table.py --zoo zoo`; the cells are under `results/attack-lab`. "
        f"n = {SAMPLES} with the trigger and without, {STEPS} steps, seed {SEED}; [95% intervals]. "
        "The ratio is FD of the model over FD of the clean twin.",
        "",
        "| model | attack | norm of r | sampler | " + " | ".join(COLUMNS) + " | training seconds |",
        "|" + "---|" * (len(COLUMNS) + 5),
    ]
    for row in rows:
        cells = [row["model"], row["attack"], f"{row['trigger_norm']:.1f}"]
        cells += [row["evaluation"]["measures"][0]["sampler"], *(shown(row, c) for c in COLUMNS)]
        lines.append("| " + " | ".join([*cells, f"{row['training']['seconds']:.0f}"]) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
