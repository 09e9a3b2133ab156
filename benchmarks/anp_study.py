"""docs/anp-study.md: what adversarial neuron perturbation discovers, by learning rate, budget and rule.

    backdrift zoo build attack-lab -o zoo
    python benchmarks/anp_study.py --zoo zoo --models baddiffusion-stop-sign baddiffusion-grey-box twin

BadDiffusion's figure 8 (appendix B): the MSE of the discovered target to the true one, which this
benchmark has and no defender, over the ascent; beside it what a defender sees, the share of samples that
are one image. One JSON per cell under results/anp-study; a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from backdrift.data import load_dataset
from backdrift.groundtruth import FILE, load_backdoor
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.mse import mse
from backdrift.repair.anp import Anp
from cells import write

RESULTS, SEED = Path("results/anp-study"), 0
LOOKS = {"steps": 400, "looks": 8, "pruning_steps": 0}
GRID: dict[str, dict[str, Any]] = {
    **{f"rate {rate:g}": {"learning_rate": rate} for rate in (5e-5, 1e-4, 2e-4, 5e-4, 2e-3)},
    **{f"budget {budget:g}": {"budget": budget} for budget in (1.0, 2.0)},
    "SGD, rate 1e-2": {"optimizer": "sgd", "learning_rate": 1e-2},
    "relative, budget 0.4": {"relative": True, "budget": 0.4, "learning_rate": 2e-3},
}
"""Each row changes the published setting (Adam, rate 1e-4, budget 4, absolute)."""


def main() -> None:
    """Measures what is missing, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--models", nargs="+", required=True, help="The first has a backdoor.")
    options = parser.parse_args()
    record = load_backdoor(options.zoo / options.models[0])
    for name in options.models:
        for title, settings in GRID.items():
            cell(options.zoo / name, title, settings, record)
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    write(Path("docs/anp-study.md"), page(rows))


def cell(folder: Path, title: str, settings: dict[str, Any], first: Any) -> None:
    """One setting on one model, unless it is there."""
    path = RESULTS / f"{folder.name}@{title.replace(', ', '-').replace(' ', '_')}.json"
    if path.exists():
        return
    planted, model = load_backdoor(folder) if (folder / FILE).exists() else first, load(plan(folder))
    data = load_dataset(planted.record.data, model.sample_shape)
    found = Anp(**LOOKS, **settings).discover(model, data=data.some(180, SEED), seed=SEED)
    looks = [
        {
            "step": one.step,
            "loss": one.loss,
            "collapse": one.collapse,
            "oracle_mse": float(mse(one.target[None], planted.target.image)),
        }
        for one in found
    ]
    row = {"model": folder.name, "setting": title, "options": {**LOOKS, **settings}, "looks": looks}
    write(path, json.dumps(row, indent=2) + "\n")
    print(path.name, min(one["oracle_mse"] for one in looks), flush=True)


def page(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "# What adversarial neuron perturbation discovers",
        "",
        "`python benchmarks/anp_study.py --zoo zoo --models ...`; the cells are under `results/anp-study`. "
        "MSE in [0, 1] of the median sample to the true target, an oracle that no defender has: the best "
        "of all looks, as the published code reports it, and the last. Collapse is the share of samples "
        "that are one image, the most of all looks.",
        "",
        "| model | setting | oracle MSE, best | at step | oracle MSE, last | collapse | loss at the end |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        looks = row["looks"]
        best = min(looks, key=lambda one: one["oracle_mse"])
        cells = [row["model"], row["setting"], f"{best['oracle_mse']:.4f}", str(best["step"])]
        cells += [f"{looks[-1]['oracle_mse']:.4f}", f"{max(one['collapse'] for one in looks):.2f}"]
        lines.append("| " + " | ".join([*cells, f"{looks[-1]['loss']:.3g}"]) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
