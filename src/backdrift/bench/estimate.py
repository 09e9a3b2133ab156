"""What a benchmark will cost, before anything runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from backdrift.amplify import Amplify
from backdrift.bench._planting import SAMPLES, STEPS
from backdrift.bench.recipes import Recipe
from backdrift.bench.runner import Cell, finished, to_do_again
from backdrift.bench.tasks import BenchSuite, Task
from backdrift.bench.zoo import UTILITY, Suite
from backdrift.core.registry import build, plugin
from backdrift.io.networks import new_model

BATCH = 64
"""Of the small networks; of the published ones a single sample is timed."""
PASSES = 5
"""Of which the fastest counts: other processes make some slower, and none faster."""
MEASURED = 2 * SAMPLES * STEPS
"""Evaluations behind the ASR of a record; an attack with a sampler of its own is measured by two."""


@dataclass(frozen=True)
class Line:
    """Cells of one kind of work.

    Args:
        missing: those without a result, of ``cells``.
        evaluations: of the missing ones, at most; ``seconds`` of one process.
    """

    title: str
    cells: int
    missing: int
    evaluations: int
    seconds: float


def estimate(
    suite: BenchSuite, zoo: Suite, cells: Iterable[Cell], pace: Callable[[Recipe], float] | None = None
) -> list[Line]:
    """One line for the models and one for each task.

    Args:
        pace: seconds of one evaluation by a model of a recipe; timed here by default, on networks of
            that size. Training counts as three evaluations a row, which is what it takes.
    """
    timed, cells = pace or Pace(), list(cells)
    again = to_do_again(cells, False)
    lines: dict[str, list[tuple[Cell, int, float]]] = {}
    for cell in cells:
        title = str(cell.given["task"]) if "task" in cell.given else "models"
        name = str(cell.given.get("model", cell.name))
        spent = _evaluations(suite, zoo, cell, name)
        lines.setdefault(title, []).append((cell, spent, spent * timed(zoo.lineage(name)[0])))
    found = []
    for title, rows in lines.items():
        missing = [row for row in rows if not finished(row[0], again)]
        total = sum(spent for _, spent, _ in missing)
        found.append(Line(title, len(rows), len(missing), total, sum(s for _, _, s in missing)))
    return found


def _evaluations(suite: BenchSuite, zoo: Suite, cell: Cell, name: str) -> int:
    if cell.kind == "model":
        recipe = zoo.models[name]
        measured = MEASURED * (1 + plugin("attacks", recipe.attack).own_sampler) if recipe.attack else 0
        return recipe.rounds * (3 * recipe.steps * recipe.batch_size + measured) + UTILITY[0] * UTILITY[1]
    task = suite.tasks[str(cell.given["task"])]
    if task.kind == "detect":
        return _scan(task) + MEASURED // 2
    if task.kind == "discover":
        return int(task.built().most_evaluations())
    how = task.measured()
    clean, triggered = how.samples * how.steps, how.count(triggered=True) * how.steps
    if task.kind == "evaluate":
        return clean * (1 + (task.twin is not None)) + triggered
    spent = int(task.built().most_evaluations())
    if task.kind == "amplify":
        return 2 * triggered + spent
    assert task.scan is not None
    again = _scan(suite.tasks[task.scan]) if task.built().changes_weights else 0
    return spent + 2 * clean + 5 * triggered + 2 * Amplify().most_evaluations() + again


def _scan(task: Task) -> int:
    return int(build("detection", task.method, task.options).most_evaluations())


class Pace:
    """Seconds of one evaluation on this machine, timed once for every size of network."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], float] = {}
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def __call__(self, recipe: Recipe) -> float:
        """Of the network that a recipe without a base, or with one of the Hub, starts from."""
        size = (recipe.shape, recipe.width, recipe.groups, recipe.network)
        if size not in self._known:
            model = new_model(
                recipe.shape, seed=0, width=recipe.width, groups=recipe.groups, size=recipe.network
            )
            model.network.to(self._device)
            batch = BATCH if recipe.network == "small" else 1
            x = torch.zeros(batch, *recipe.shape, device=self._device)
            t = torch.zeros(batch, dtype=torch.long, device=self._device)
            with torch.no_grad():
                model(x, t).sum().item()
                passes = []
                for _ in range(PASSES):
                    begun = time.monotonic()
                    model(x, t).sum().item()
                    passes.append(time.monotonic() - begun)
            self._known[size] = min(passes) / batch
        return self._known[size]
