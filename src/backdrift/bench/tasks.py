"""A benchmark as data: a population, and what is done with every model of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from backdrift.bench._work import detect, evaluation_plan, measure
from backdrift.bench.runner import Cell, Progress, Status, address_of, run_cells
from backdrift.bench.zoo import NAME, Suite, check_folders, load_suite, model_cells, read_toml, shipped
from backdrift.core.registry import build
from backdrift.detection._calibration import CalibrationTable
from backdrift.io.files import replaced_file

FOLDER_FILE = "benchmark.json"
VERSIONS = {"detect": 1, "evaluate": 1}
"""Grow when the same settings give another value."""
DEFAULT_PRESET = "cpu"
PRESETS = ("smoke", "gpu", "paper")
"""Others that a benchmark may have: seconds in CI, one GPU, the published settings."""


class Task(BaseModel):
    """One thing to do with models.

    Args:
        kind: ``detect`` runs a detector; ``evaluate`` measures ASR and utility of those with a backdoor.
        method: plug-in name of the detector.
        options: its fields; of ``evaluate`` those of :class:`backdrift.evaluate.Plan`.
        models: patterns for names, such as ``ode-*``.
        seeds: one run each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["detect", "evaluate"]
    method: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    models: tuple[str, ...] = ("*",)
    seeds: tuple[int, ...] = (0,)

    def resolved(self) -> dict[str, Any]:
        """Every setting that the value depends on, JSON-able.

        Raises:
            ValueError: unknown method or option.
        """
        if self.kind == "detect":
            settings = build("detection", self.method, self.options).settings()
            settings["thresholds"] = self._thresholds(settings["budget"])
        else:
            settings = evaluation_plan(self.options, 0, "ddpm").__dict__
        found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return {"method": self.method, "version": VERSIONS[self.kind], **found}

    def _thresholds(self, budget: str) -> str | None:
        """Hash of what the calibration has on this detector at this budget: a verdict depends on it."""
        file = self.options.get("calibration")
        table = CalibrationTable.read(file) if file else CalibrationTable.shipped()
        entry = table.detectors.get(self.method, {}).get(budget)
        return None if entry is None else address_of(entry.model_dump(mode="json"))


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
            replace those of the file, key by key.

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
        suite = BenchSuite.model_validate(_merged(table, known.get(preset, {})))
    except ValidationError as error:
        raise ValueError(f"benchmark {name}: {error}") from None
    beside = Path(name).with_name(suite.zoo)
    zoo = load_suite(str(beside) if beside.is_file() else suite.zoo)
    if suite.ours is not None and suite.ours not in suite.tasks:
        raise ValueError(f"benchmark {name}: no task is called {suite.ours!r}")
    for kind in (kind for kinds in suite.pooled.values() for kind in kinds):
        if kind not in zoo.kinds.values():
            raise ValueError(f"benchmark {name}: no model is of the kind {kind!r}")
    for title, task in suite.tasks.items():
        task.resolved()
        for pattern in task.models:
            if not any(fnmatchcase(model, pattern) for model in zoo.models):
                raise ValueError(f"benchmark {name}: no model is called {pattern!r}, which {title} wants")
    return suite, zoo


def _merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(table)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found


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

    def cells(self, folder: Path) -> list[Cell]:
        """See :func:`bench_cells`."""
        models = os.path.normpath(folder / self.models)  # the folder may not be there yet
        return bench_cells(self.suite, self.zoo, folder, Path(models))


def run_bench(
    opened: Opened,
    folder: Path,
    *,
    retry: bool = False,
    progress: Progress | None = None,
    executor: Callable[..., dict[str, Status]] = run_cells,
) -> dict[str, Status]:
    """Does what is missing.

    ``benchmark.json`` is written first, so that status and table need the folder alone.

    Args:
        executor: :func:`backdrift.bench.runner.run_cells` or
            :func:`backdrift.bench.executors.run_on_ray`.

    Raises:
        ValueError: results of other settings there, or a folder in the place of a model that was not built.
    """
    cells = opened.cells(folder)
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


def bench_cells(suite: BenchSuite, zoo: Suite, folder: Path, models: Path | None = None) -> list[Cell]:
    """The models first, then task by task.

    Args:
        folder: of the results: ``cells/TASK/MODEL-SEED.json``, with ``evidence`` beside.
        models: where the population lies or is built; ``folder/zoo`` by default.
    """
    built = model_cells(zoo, models or folder / "zoo")
    cells = list(built.values())
    devices = [] if suite.device == "cpu" else [suite.device]  # results from before there was a choice
    for title, task in suite.tasks.items():
        resolved = task.resolved()
        for name in zoo.models:
            if not any(fnmatchcase(name, pattern) for pattern in task.models):
                continue
            if task.kind == "evaluate" and not _attacked(zoo, name):
                continue
            for seed in task.seeds:
                path = folder / "cells" / title / f"{name}-{seed}.json"
                place = built[name].path.with_suffix("")
                work = {"detect": detect, "evaluate": measure}[task.kind]
                cells.append(
                    Cell(
                        name=f"{title}, {name}, seed {seed}",
                        path=path,
                        key=[task.kind, resolved, built[name].address, *devices],
                        given=task.model_dump(mode="json") | {"task": title, "model": name},
                        work=partial(work, task, place, seed, path, suite.device),
                        needs=(built[name],),
                        seed=seed,
                        threads=suite.threads,
                        kind=task.kind,
                        device=suite.device,
                    )
                )
    return cells


def _attacked(zoo: Suite, name: str) -> bool:
    recipe = zoo.models[name]
    return recipe.attack is not None and recipe.options.get("poison_rate") != 0
