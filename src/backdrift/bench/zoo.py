"""Populations of models from a TOML file."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterable
from functools import partial
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from backdrift.bench.recipes import Recipe, make, step_folder
from backdrift.bench.runner import Cell, Outcome, Progress, Result, run_cells
from backdrift.core.model import DiffusionModel
from backdrift.data import load_dataset
from backdrift.io.hub import parse_reference
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.draws import Plan
from backdrift.metrics.utility import Utility

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a model or a task: a folder is called so."""
VERSION = 1
"""Grows when the same recipe gives other weights."""
UTILITY = (512, 25)
"""Samples and steps behind the utility of a model's result."""


class Group(BaseModel):
    """Models that have most of a recipe in common, and a row of the tables.

    Args:
        defaults: fields of their recipes; ``options`` are merged key by key.
        vary: values for a field, ``options.poison_rate`` for one of the options. Every model is made
            once for each combination, its name followed by the values.
        models: what each adds to the defaults.
    """

    model_config = ConfigDict(extra="forbid")

    defaults: dict[str, Any] = {}
    vary: dict[str, list[Any]] = {}
    models: dict[str, dict[str, Any]]

    def recipes(self) -> dict[str, dict[str, Any]]:
        """All of them by name, not validated yet."""
        found = {}
        for name, own in self.models.items():
            common = {**self.defaults, **own}
            options = {**self.defaults.get("options", {}), **own.get("options", {})}
            for values in product(*self.vary.values()):
                varied, chosen = dict(common), dict(options)
                for key, value in zip(self.vary, values, strict=True):
                    place = chosen if key.startswith("options.") else varied
                    place[key.removeprefix("options.")] = value
                if chosen:
                    varied["options"] = chosen
                found["-".join([name, *(f"{value}" for value in values)])] = varied
        return found


class Suite(BaseModel):
    """Named recipes, in the order in which they are built; a ``base`` is an earlier one, or of the Hub.

    Args:
        kinds: of models that come from a group, its name.
    """

    model_config = ConfigDict(extra="forbid")

    description: str
    models: dict[str, Recipe]
    kinds: dict[str, str] = {}

    def lineage(self, name: str) -> list[Recipe]:
        """The recipe of a model and those that it was trained on from, first things first."""
        recipe = self.models[name]
        return [*(self.lineage(recipe.base) if recipe.base in self.models else []), recipe]


def suites() -> list[str]:
    """Names of the shipped suites."""
    return shipped("suites")


def shipped(folder: str) -> list[str]:
    """Names of the TOML files in a folder of this package."""
    found = resources.files("backdrift.bench").joinpath(folder).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in found if f.name.endswith(".toml"))


def read_toml(name: str, folder: str, kind: str) -> dict[str, Any]:
    """A shipped file, or the TOML file of that path.

    Args:
        kind: what it is, for messages.

    Raises:
        ValueError: no such file, or one that is not TOML.
    """
    known = shipped(folder)
    if name in known:
        text = (
            resources.files("backdrift.bench").joinpath(folder, f"{name}.toml").read_text(encoding="utf-8")
        )
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise ValueError(f"no {kind} {name!r}: name a TOML file or one of {', '.join(known)}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{kind} {name}: {error}") from None


def load_suite(name: str) -> Suite:
    """A shipped suite, or the TOML file of that path.

    Raises:
        ValueError: unknown name, unknown keys, or a base that is not built before its model.
    """
    return parse_suite(read_toml(name, "suites", "suite"), name)


def parse_suite(table: dict[str, Any], name: str) -> Suite:
    """A suite from the content of its TOML: ``description``, ``models``, and ``groups`` by kind.

    Raises:
        ValueError: unknown keys, two models of one name, or a base that is not built before its model.
    """
    table = dict(table)
    models = dict(table.pop("models", {}))
    kinds: dict[str, str] = {}
    try:
        groups = {kind: Group.model_validate(g) for kind, g in table.pop("groups", {}).items()}
        for kind, group in groups.items():
            recipes = group.recipes()
            if twice := sorted(set(recipes) & set(models)):
                raise ValueError(f"suite {name}: two models are called {twice[0]}")
            models |= recipes
            kinds |= dict.fromkeys(recipes, kind)
        suite = Suite.model_validate({**table, "models": models, "kinds": kinds})
    except ValidationError as error:
        raise ValueError(f"suite {name}: {error}") from None
    built: set[str] = set()
    for model, recipe in suite.models.items():
        if not NAME.fullmatch(model):
            raise ValueError(f"suite {name}: {model!r} is no name for a folder")
        if recipe.base is not None and recipe.base not in built and not parse_reference(recipe.base):
            raise ValueError(f"suite {name}: {model} needs base {recipe.base!r}, not built before it")
        built.add(model)
    return suite


def model_cells(suite: Suite, output: Path) -> dict[str, Cell]:
    """A cell for every model: the folder ``OUTPUT/NAME`` and its result ``OUTPUT/NAME.json``."""
    cells: dict[str, Cell] = {}
    for name, recipe in suite.models.items():
        cells[name] = Cell(
            name=name,
            path=output / f"{name}.json",
            key=["model", VERSION, *(one.text() for one in suite.lineage(name))],
            given=recipe.model_dump(mode="json", exclude_defaults=True),
            work=partial(_build, recipe, output / name),
            needs=(cells[recipe.base],) if recipe.base in cells else (),
            products=(output / name, *(step_folder(output / name, step) for step in recipe.keep)),
            seed=recipe.seed,
            kind="model",
            device="any",
        )
    return cells


def _build(recipe: Recipe, folder: Path, progress: Progress | None) -> Outcome:
    based = recipe
    if recipe.base is not None and not parse_reference(recipe.base):
        based = recipe.model_copy(update={"base": str(folder.parent / recipe.base)})
    _marker(folder).parent.mkdir(parents=True, exist_ok=True)
    _marker(folder).touch()
    if folder.exists():
        shutil.rmtree(folder)  # complete, but killed before its result was written; see check_folders
    cost = make(based, folder, progress=progress)
    model = load(plan(folder), None, "cuda" if torch.cuda.is_available() else "cpu")
    value = {
        "seconds": cost["seconds"],
        "loss": cost["loss"],
        "weights_sha256": model.origin.sha256,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "sample_shape": list(model.sample_shape),
        "measured": cost.get("measured"),
        "utility": _utility(model, recipe),
    }
    resolved = recipe.model_dump(mode="json")
    return Outcome(resolved=resolved, value=value, evaluations=cost["evaluations"] + model.evaluations)


def _marker(folder: Path) -> Path:
    """Says that a folder was begun here, so that it may be replaced."""
    return folder.parent / ".locks" / f"{folder.name}.begun"


def check_folders(cells: Iterable[Cell]) -> None:
    """Raises ``ValueError`` for a folder in the place of a model that was not begun here."""
    for cell in cells:
        folder = cell.path.with_suffix("")
        known = cell.path.exists() or _marker(folder).exists()
        if cell.kind == "model" and folder.exists() and not known:
            raise ValueError(f"{folder} was not made by this command: remove it, or name another folder")


def _utility(model: DiffusionModel, recipe: Recipe) -> dict[str, Any]:
    """FD of few clean samples to the training set: broken models show, small differences do not."""
    data = load_dataset(recipe.data, model.image_shape, on_bad=recipe.on_bad)
    how = Plan(samples=UTILITY[0], sampler="ddpm", steps=UTILITY[1], seed=recipe.seed)
    utility = Utility(data.images, seed=recipe.seed, replicates=2, batch=model.batch_size)
    for samples in how.draw(model, None):
        utility.update(samples)
    return {measure.name: measure.value for measure in utility.measures(how)} | {
        "n": how.samples,
        "sampler": f"{how.sampler}, {how.steps} steps",
    }


def build_suite(
    suite: Suite,
    output: Path,
    *,
    retry: bool = False,
    progress: Progress | None = None,
) -> dict[str, Result]:
    """Builds what is not there yet; killed and run again, or run twice at once, it goes on.

    Args:
        retry: try again what failed.
        progress: see :func:`backdrift.bench.runner.run_cells`.

    Returns:
        The result of every model.

    Raises:
        ValueError: the folder holds a model of that name by another recipe.
    """
    cells = model_cells(suite, output)
    check_folders(cells.values())
    run_cells(list(cells.values()), retry=retry, progress=progress)
    found = {name: cell.result() for name, cell in cells.items()}
    return {name: result for name, result in found.items() if result is not None}
