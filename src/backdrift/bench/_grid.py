"""The cells of a benchmark: its models, and every task on every model that it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdrift.bench._task import Kind, Task
from backdrift.bench._work import Job, detect, evidence_of, measure
from backdrift.bench._work_amplify import amplify
from backdrift.bench._work_repair import discover, repair
from backdrift.bench.recipes import step_folder
from backdrift.bench.runner import Cell, Outcome, Progress
from backdrift.bench.zoo import Suite, model_cells

if TYPE_CHECKING:
    from backdrift.bench.tasks import BenchSuite

WORK: dict[Kind, Callable[[Job, Progress | None], Outcome]] = {
    "detect": detect,
    "evaluate": measure,
    "repair": repair,
    "amplify": amplify,
    "discover": discover,
}


def bench_cells(
    suite: BenchSuite, zoo: Suite, folder: Path, models: Path | None = None, tasks: Sequence[str] = ()
) -> list[Cell]:
    """The models that a task needs first, then task by task.

    Args:
        folder: of the results: ``cells/TASK/MODEL-SEED.json``, or ``MODEL@STEP-SEED.json``, with
            ``evidence`` beside.
        models: where the population lies or is built; ``folder/zoo`` by default.
        tasks: only these, with all that they need; every task by default.

    Raises:
        ValueError: an unknown method, option or task, or a model, a step or a scan that is not there.
    """
    grid = _Grid(suite, zoo, folder, model_cells(zoo, models or folder / "zoo"))
    for title, task in suite.tasks.items():
        try:
            grid.add(title, task)
        except ValueError as error:
            raise ValueError(f"{title}: {error}") from None
    for title in tasks:
        if title not in suite.tasks:
            raise ValueError(f"no task is called {title!r}; there are {', '.join(suite.tasks)}")
    asked = [cell for cell in grid.cells if not tasks or cell.given["task"] in tasks]
    needed = {cell.path for cell in asked}
    while asked:
        fresh = [cell for cell in asked.pop().needs if cell.path not in needed]
        needed.update(cell.path for cell in fresh)
        asked += fresh
    return [cell for cell in (*grid.built.values(), *grid.cells) if cell.path in needed]


@dataclass
class _Grid:
    suite: BenchSuite
    zoo: Suite
    folder: Path
    built: dict[str, Cell]
    cells: list[Cell] = field(default_factory=list)
    scans: dict[tuple[str | None, str, int], Cell] = field(default_factory=dict)

    def add(self, title: str, task: Task) -> None:
        """All cells of a task."""
        resolved = task.resolved()
        for pattern in task.models:
            if not any(fnmatchcase(name, pattern) for name in self.zoo.models):
                raise ValueError(f"no model is called {pattern!r}")
        for name in self.zoo.models:
            if not any(fnmatchcase(name, pattern) for pattern in task.models):
                continue
            clean = not attacked(self.zoo, name)
            if task.kind != "detect" and clean and task.trigger_of is None:
                continue
            record = self._known(task.trigger_of) if clean and task.trigger_of else name
            for step in self._steps(task, name):
                for seed in task.seeds:
                    self._cell(title, task, resolved, name, record, step, seed)

    def _cell(
        self,
        title: str,
        task: Task,
        resolved: dict[str, Any],
        name: str,
        record: str,
        step: int | None,
        seed: int,
    ) -> None:
        """One cell. What is not asked for is no part of its key: results from before it could be stay."""
        place = name if step is None else f"{name}@{step:06d}"
        twin = None if task.twin is None else self.built[self._known(task.twin)]
        scan = self._scan(task, name, seed)
        others = {"twin": twin, "scan": scan, "record": self.built[record] if record != name else None}
        extras: dict[str, Any] = {key: cell.address for key, cell in others.items() if cell is not None}
        extras |= {} if step is None else {"step": step}
        devices = [] if self.suite.device == "cpu" else [self.suite.device]
        path = self.folder / "cells" / title / f"{place}-{seed}.json"
        job = Job(
            task,
            self._checkpoint(name, step),
            seed,
            path,
            self.suite.device,
            _folder(self.built[record]),
            None if twin is None else _folder(twin),
            None if task.scan is None else self.suite.tasks[task.scan],
            None if scan is None else scan.path,
        )
        about = {"task": title, "model": name} | ({} if step is None else {"step": step})
        cell = Cell(
            name=f"{title}, {name}{'' if step is None else f' at step {step}'}, seed {seed}",
            path=path,
            key=[task.kind, resolved, self.built[name].address, *devices, *([extras] if extras else [])],
            given=task.model_dump(mode="json", exclude_defaults=True) | about,
            work=partial(WORK[task.kind], job),
            needs=(self.built[name], *(other for other in others.values() if other is not None)),
            products=(evidence_of(path),) if task.kind == "detect" else (),
            seed=seed,
            threads=self.suite.threads,
            kind=task.kind,
            device=self.suite.device,
        )
        self.cells.append(cell)
        if task.kind == "detect":
            self.scans[title, name, seed] = cell

    def _known(self, name: str) -> str:
        if name not in self.zoo.models:
            raise ValueError(f"no model is called {name!r}")
        return name

    def _scan(self, task: Task, name: str, seed: int) -> Cell | None:
        if task.scan is None:
            return None
        found = self.scans.get((task.scan, name, seed))
        if found is None:
            raise ValueError(f"no earlier task {task.scan!r} of kind detect has {name} with seed {seed}")
        return found

    def _steps(self, task: Task, name: str) -> Iterator[int | None]:
        recipe = self.zoo.models[name]
        known = ([0] if recipe.base in self.zoo.models else []) + [*recipe.keep, recipe.steps]
        for step in task.at:
            if step not in known:
                raise ValueError(f"{name} has no step {step}: {', '.join(map(str, known))}")
        yield from task.at or [None]

    def _checkpoint(self, name: str, step: int | None) -> Path:
        """Where the model of a step lies; see ``Recipe.keep``."""
        recipe, folder = self.zoo.models[name], _folder(self.built[name])
        if step == 0:
            return _folder(self.built[str(recipe.base)])
        return folder if step is None or step == recipe.steps else step_folder(folder, step)


def _folder(cell: Cell) -> Path:
    """Of the model that a cell makes."""
    return cell.path.with_name(cell.name)


def attacked(zoo: Suite, name: str) -> bool:
    """Whether a model has a backdoor."""
    recipe = zoo.models[name]
    return recipe.attack is not None and recipe.options.get("poison_rate") != 0
