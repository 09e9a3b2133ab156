"""docs/restore.md: damaged images restored by backdoored models, with and without the trigger.

    backdrift zoo build attack-lab -o zoo
    python benchmarks/restore_table.py --zoo zoo

BadDiffusion's figure 10 on digits at 16x16. One JSON per model, task and number of steps under
results/restore; a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from backdrift.bench.zoo import load_suite
from backdrift.groundtruth import load_backdoor
from backdrift.io.evidence import save_images
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.restoration import Task, restore
from cells import shown, write

SUITE = "attack-lab"
STEPS, IMAGES, SEED = (400, 1000), 64, 0
DRAWN = ("composite-stop-sign", "inpaint-box")
"""The model and the task whose pictures stand in the page."""
COLUMNS = ("MSE, not restored", "MSE", "hits without trigger", "MSE triggered", "SSIM triggered", "ASR")

Row = dict[str, Any]


def main() -> None:
    """Measures what is missing, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    options = parser.parse_args()
    results = Path("results/restore")
    for name, recipe in load_suite(SUITE).models.items():
        if recipe.attack == "baddiffusion" and (options.zoo / name / "model_index.json").exists():
            for task in get_args(Task):
                for steps in STEPS:
                    cell(options.zoo / name, task, steps, results / f"{name}@{steps}-{task}.json")
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    write(Path("docs/restore.md"), page(rows))


def cell(folder: Path, task: Task, steps: int, path: Path) -> None:
    """One model, task and number of steps, unless it is there."""
    if path.exists():
        return
    planted, model = load_backdoor(folder), load(plan(folder))
    data = planted.dataset(model.image_shape)
    images = data.some(IMAGES, SEED)
    found, pictures = restore(
        model, images, task=task, steps=steps, seed=SEED, planted=planted, data=data.name
    )
    if (folder.name, task) == DRAWN:
        save_images(pictures.grid(), Path(f"docs/restore-{steps}.png"), columns=len(pictures.rows[0]))
    row: Row = {"model": folder.name, "task": task, "steps": steps}
    row |= {"composite": planted.record.composite, "evaluation": found.model_dump(mode="json")}
    write(path, json.dumps(row, indent=2) + "\n")
    print(path.name, shown(row, "ASR"), flush=True)


def page(rows: list[Row]) -> str:
    """Markdown."""
    name, task = DRAWN
    lines = [
        "# Restoring damaged images",
        "",
        f"`backdrift zoo build {SUITE} -o zoo`, then `python benchmarks/restore_table.py --zoo zoo`; the"
        f" cells are under `results/restore`. n = {IMAGES} digits, the same with and without the "
        "trigger, one seed, [95% intervals]. Errors are to the originals, of triggered images to the "
        "target. *Trigger only*: the poisoned rows of the training showed no image around the trigger; "
        "here, as in BadDiffusion's appendix C, there is one, and the damaged image goes into the last "
        "steps of the chain without noise.",
        "",
        "| model | R | task | steps | " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * (len(COLUMNS) + 4),
    ]
    for row in sorted(rows, key=lambda r: (r["model"], r["task"], r["steps"])):
        cells = [row["model"], "composite" if row["composite"] else "trigger only", row["task"]]
        cells += [str(row["steps"]), *(shown(row, c) for c in COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    for steps in STEPS:
        lines += ["", f"![{name}, {task}, {steps} steps](restore-{steps}.png)"]
        lines += [
            "",
            f"{name}, {task}, {steps} steps. Rows: originals; damaged; restored; with the trigger ",
        ]
        lines[-1] += "and damaged; restored."
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
