"""Results for the pages of this folder: those of ``backdrift bench run``, and cells of the attack table."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdrift.bench.tasks import open_bench
from backdrift.cli._progress import progress_bar
from backdrift.core.sampling import usual_sampler
from backdrift.evaluate import CleanTwin, Plan, evaluate
from backdrift.groundtruth import load_backdoor
from backdrift.io.files import replaced_file
from backdrift.io.load import load
from backdrift.io.plan import plan

RATIO = "FD(random-conv) ratio"


@dataclass
class Bench:
    """Evaluates models of a zoo into a folder of results; a cell that is there is not done again.

    Args:
        samples: clean ones; ``triggered`` with the trigger.
        steps: of the sampler, where a cell does not say.
    """

    zoo: Path
    results: Path
    samples: int
    triggered: int
    steps: int
    seed: int = 0
    twins: dict[tuple[str, str, int], CleanTwin] = field(default_factory=dict)

    def path(self, model: str, sampler: str = "", steps: int = 0) -> Path:
        """Of the JSON of a cell; without a sampler the one that the attack is measured with."""
        way = f"@{sampler}-{steps}" if sampler else ""
        return self.results / f"{model.replace('/', '-')}{way}.json"

    def cell(
        self, model: str, twin: str, *, record: str = "", sampler: str = "", steps: int = 0
    ) -> dict[str, Any] | None:
        """The cell, measured if it is not there; None if there is no such model either.

        Args:
            twin: the clean model that its utility is set beside.
            record: the model whose backdoor is measured, for a clean model; its own by default.
        """
        path = self.path(model, sampler, steps)
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        needed = [model, twin, record or model]
        if not all((self.zoo / name / "model_index.json").exists() for name in needed):
            return None
        row = self._measure(model, twin, record or model, sampler, steps or self.steps)
        write(path, json.dumps(row, indent=2) + "\n")
        print(path.name, *(f"{c} {shown(row, c)}" for c in ("ASR", "MSE", RATIO)), flush=True)
        return row

    def _measure(self, model: str, twin: str, record: str, sampler: str, steps: int) -> dict[str, Any]:
        planted = load_backdoor(self.zoo / record)
        known = planted.record
        loaded = load(plan(self.zoo / model))
        sampler = sampler or usual_sampler(known.sampler_family, loaded.schedule)
        how = Plan(self.samples, sampler, steps, self.seed, self.triggered)
        data = planted.dataset(loaded.sample_shape)
        key = (twin, sampler, steps)
        with progress_bar(model) as progress:
            if key not in self.twins:
                clean = load(plan(self.zoo / twin))
                self.twins[key] = CleanTwin.measure(clean, data.images, how, progress=progress)
            beside = self.twins[key]
            found = evaluate(
                loaded, planted, data.images, how, reference=data.name, clean_twin=beside, progress=progress
            )
        own = record == model
        settings: dict[str, Any] = {
            "attack": known.attack,
            "trigger": known.trigger,
            "target": known.target,
        }
        settings |= {"config": known.config, "trigger_norm": known.trigger_norm}
        settings |= {"training": known.training if own else None, "twin": twin, "backdoor_of": record}
        return {"model": model, **settings, "evaluation": found.model_dump(mode="json")}


def results(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """What ``backdrift bench run`` has finished in a folder, in its order.

    Of every task of these kinds on a model: what was given (``task``, ``model``, ``step`` where it has
    one), and the value as ``evaluation``. What failed is said on standard error.
    """
    rows = []
    for cell in open_bench(folder).cells(folder):
        found = cell.result() if cell.kind in kinds else None
        if found is not None and found.status == "done":
            rows.append({**cell.given, "evaluation": found.value})
        elif found is not None:
            print(f"failed: {cell.name}: {found.error}", file=sys.stderr)
    return rows


def write(path: Path, text: str) -> None:
    """By rename."""
    with replaced_file(path) as fresh:
        fresh.write_text(text)


def save(figure: Any, path: Path, **how: Any) -> None:
    """A figure of matplotlib as PNG, by rename."""
    with replaced_file(path) as fresh:
        figure.savefig(fresh, format="png", **how)


def value(row: dict[str, Any], name: str) -> tuple[float, float, float]:
    """One measure and its 95% interval; NaN if there is none."""
    for m in row["evaluation"]["measures"]:
        if m["name"] == name:
            return float(m["value"]), float(m["low"]), float(m["high"])
    return float("nan"), float("nan"), float("nan")


def count(rows: list[dict[str, Any]], name: str) -> str:
    """The n of a measure in all rows."""
    found = {m["n"] for row in rows for m in row["evaluation"]["measures"] if m["name"] == name}
    return " or ".join(f"{n:,}" for n in sorted(found)) or "?"


def shown(row: dict[str, Any], name: str) -> str:
    """The same as text."""
    middle, low, high = value(row, name)
    return "" if middle != middle else f"{middle:.3g} [{low:.3g}, {high:.3g}]"
