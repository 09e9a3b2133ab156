"""Populations of models from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from backdrift.bench.recipes import Recipe, make

Progress = Callable[[int, int, str], None]


class Suite(BaseModel):
    """Named recipes, in the order in which they are built; a ``base`` names an earlier model."""

    model_config = ConfigDict(extra="forbid")

    description: str
    models: dict[str, Recipe]


def suites() -> list[str]:
    """Names of the shipped suites."""
    found = resources.files("backdrift.bench").joinpath("suites").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in found if f.name.endswith(".toml"))


def load_suite(name: str) -> Suite:
    """A shipped suite, or the TOML file of that path.

    Raises:
        ValueError: unknown name, unknown keys, or a base that is not built before its model.
    """
    if name in suites():
        folder = resources.files("backdrift.bench").joinpath("suites")
        text = folder.joinpath(f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise ValueError(f"no suite {name!r}: name a TOML file or one of {', '.join(suites())}")
    try:
        suite = Suite.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ValueError(f"suite {name}: {error}") from None
    built: set[str] = set()
    for model, recipe in suite.models.items():
        if recipe.base is not None and recipe.base not in built:
            raise ValueError(f"suite {name}: {model} needs base {recipe.base!r}, not built before it")
        built.add(model)
    return suite


def build_suite(
    suite: Suite, output: Path, *, progress: Progress | None = None
) -> dict[str, dict[str, Any] | None]:
    """Builds what is not there yet; killed and run again, it goes on.

    Returns:
        Cost of every model, None for those that were there.
    """
    costs: dict[str, dict[str, Any] | None] = {}
    for name, recipe in suite.models.items():
        if (output / name / "model_index.json").exists():
            costs[name] = None
            continue
        based = (
            recipe if recipe.base is None else recipe.model_copy(update={"base": str(output / recipe.base)})
        )
        costs[name] = make(based, output / name, progress=_named(name, progress))
    return costs


def _named(name: str, progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, text: progress(done, total, f"{name}, {text}")
