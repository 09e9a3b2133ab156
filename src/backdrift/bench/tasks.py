"""A benchmark as data: a population, and what is done with every model of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from backdrift.bench._grid import bench_cells
from backdrift.bench._task import Task
from backdrift.bench.runner import Cell, Progress, Status, run_cells
from backdrift.bench.zoo import NAME, Suite, check_folders, load_suite, read_toml, shipped
from backdrift.io.files import replaced_file

__all__ = ["BenchSuite", "Opened", "Task", "bench_cells"]

FOLDER_FILE = "benchmark.json"
DEFAULT_PRESET = "cpu"
PRESETS = ("smoke", "gpu", "paper")
"""Others that a benchmark may have: seconds in CI, one GPU, the published settings."""


class BenchSuite(BaseModel):
    """What ``backdrift bench run`` reads.

    Args:
        zoo: a suite of models, see :class:`backdrift.bench.zoo.Suite`.
        tasks: by name, the rows of the tables.
        pooled: kinds of models that the tables show together as well, by the name of that row.
        ours: the task that the others are compared with, model by model; none without it.
        threads: of torch in every cell but those of models; part of what a result depends on.
        device: of the tasks, and what a result depends on. Models are made on a GPU where there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    zoo: str
    tasks: dict[str, Task]
    pooled: dict[str, tuple[str, ...]] = {}
    ours: str | None = None
    threads: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"

    @field_validator("tasks")
    @classmethod
    def _name_folders(cls, tasks: dict[str, Task]) -> dict[str, Task]:
        for title in tasks:
            if not NAME.fullmatch(title):
                raise ValueError(f"{title!r} is no name for a folder")
        return tasks


def bench_suites() -> list[str]:
    """Names of the shipped ones."""
    return shipped("benchmarks")


def presets(name: str) -> list[str]:
    """Those of a benchmark."""
    return [DEFAULT_PRESET, *read_toml(name, "benchmarks", "benchmark").get("presets", {})]


def load_bench(name: str, preset: str = DEFAULT_PRESET) -> tuple[BenchSuite, Suite]:
    """A shipped benchmark, or the TOML file of that path, and its population.

    Args:
        preset: ``cpu`` is what the file says; another one is its table ``presets.NAME``, whose values
            replace those of the file, key by key. A table ``defaults.KIND`` has what the tasks of that
            kind have in common, key by key too.

    Raises:
        ValueError: unknown name, preset, key, method or option, or a pattern that no model has.
    """
    table = read_toml(name, "benchmarks", "benchmark")
    known = table.pop("presets", {})
    if unknown := sorted(set(known) - set(PRESETS)):
        raise ValueError(f"benchmark {name}: {unknown[0]!r} is no preset: {', '.join(PRESETS)}")
    if preset not in (DEFAULT_PRESET, *known):
        raise ValueError(
            f"benchmark {name} has the presets {', '.join([DEFAULT_PRESET, *known])}, not {preset!r}"
        )
    try:
        suite = BenchSuite.model_validate(_spread(_merged(table, known.get(preset, {}))))
    except ValueError as error:
        raise ValueError(f"benchmark {name}: {error}") from None
    beside = Path(name).with_name(suite.zoo)
    zoo = load_suite(str(beside) if beside.is_file() else suite.zoo)
    if suite.ours is not None and suite.ours not in suite.tasks:
        raise ValueError(f"benchmark {name}: no task is called {suite.ours!r}")
    for kind in (kind for kinds in suite.pooled.values() for kind in kinds):
        if kind not in zoo.kinds.values():
            raise ValueError(f"benchmark {name}: no model is of the kind {kind!r}")
    try:
        bench_cells(suite, zoo, Path())
    except ValueError as error:
        raise ValueError(f"benchmark {name}: {error}") from None
    return suite, zoo


def _merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(table)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found


def _spread(table: dict[str, Any]) -> dict[str, Any]:
    """The defaults of a kind put into its tasks; what else is wrong there is left to the validation."""
    defaults, tasks = table.pop("defaults", {}), table.get("tasks")
    if not isinstance(defaults, dict) or not all(isinstance(part, dict) for part in defaults.values()):
        raise ValueError("defaults are tables by kind of task, such as [defaults.detect]")
    found = {}
    for title, task in (tasks if isinstance(tasks, dict) else {}).items():
        found[title] = _merged(defaults.get(task.get("kind"), {}), task) if isinstance(task, dict) else task
    kinds = {task.get("kind") for task in found.values() if isinstance(task, dict)}
    if unknown := sorted(set(defaults) - kinds):
        raise ValueError(f"there are defaults for {unknown[0]!r}, and no task is of that kind")
    return {**table, "tasks": found} if found else table


class Opened(BaseModel):
    """What a folder of results is of: ``benchmark.json`` in it.

    Args:
        models: where the population lies, from the folder.
        name: of the benchmark, and its preset.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: BenchSuite
    zoo: Suite
    models: str
    name: str = ""
    preset: str = DEFAULT_PRESET

    def cells(self, folder: Path, tasks: Sequence[str] = ()) -> list[Cell]:
        """See :func:`bench_cells`."""
        models = os.path.normpath(folder / self.models)  # the folder may not be there yet
        return bench_cells(self.suite, self.zoo, folder, Path(models), tasks)


def run_bench(
    opened: Opened,
    folder: Path,
    *,
    tasks: Sequence[str] = (),
    retry: bool = False,
    progress: Progress | None = None,
    executor: Callable[..., dict[str, Status]] = run_cells,
) -> dict[str, Status]:
    """Does what is missing.

    ``benchmark.json`` is written first, so that status and table need the folder alone.

    Args:
        tasks: only these, with all that they need; every task by default.
        executor: :func:`backdrift.bench.runner.run_cells` or
            :func:`backdrift.bench.executors.run_on_ray`.

    Raises:
        ValueError: an unknown task, results of other settings there, or a folder in the place of a model
            that was not built.
    """
    cells = opened.cells(folder, tasks)
    check_folders(cells)
    with replaced_file(folder / FOLDER_FILE) as fresh:
        fresh.write_text(opened.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return executor(cells, retry=retry, progress=progress)


def open_bench(folder: Path) -> Opened:
    """Raises ``ValueError`` where nothing was run."""
    path = folder / FOLDER_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no results: backdrift bench run SUITE -o {folder}")
    try:
        return Opened.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from None
