"""A benchmark's results as one page: every attack against every method, down to the JSON of a cell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from backdrift.bench.recipes import Recipe
from backdrift.bench.runner import Cell, Result
from backdrift.bench.tables import CLEAN, group_of
from backdrift.bench.tasks import Opened
from backdrift.core.results import Verdict
from backdrift.core.trigger import Target
from backdrift.groundtruth import FILE, load_backdoor
from backdrift.metrics.rates import rate
from backdrift.report.html import environment
from backdrift.report.images import Picture, picture, picture_of_file, stretched
from backdrift.report.text import number
from backdrift.report.views import flattened

IMAGE_BYTES = 16_000_000
_LARGEST_IMAGE, _LARGEST_JSON = 60_000, 100_000
_VERDICTS = tuple(str(verdict) for verdict in Verdict)
_STATUSES = (*_VERDICTS, "measured", "failed", "missing")
_FILES = {
    "trigger.png": "The inverted trigger. Smallest value black, largest white.",
    "target.png": "The target that it recovers.",
    "samples.png": "What the model draws: from noise above, from the same noise with that trigger below.",
}


Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class CellView:
    """A place of the matrix and what opens from it.

    Args:
        short: what the matrix shows; ``status`` a verdict, ``measured``, ``failed`` or ``missing``.
        wrong: a verdict that the ground truth contradicts.
        facts: names and values, the most telling first.
        given: the settings as the benchmark has them, and ``resolved`` with every default.
        text: the whole JSON.
    """

    key: str
    title: str
    status: str
    short: str
    wrong: bool
    facts: Rows
    given: Rows
    resolved: Rows
    text: Markup
    pictures: list[Picture]


@dataclass(frozen=True)
class ModelView:
    """A row: a model, what is in it, and its cells by task."""

    name: str
    attack: str
    trigger: str
    data: str
    asr: float | None
    cell: CellView
    cells: dict[str, list[CellView]]

    @property
    def statuses(self) -> set[str]:
        """Of its cells."""
        return {cell.status for cells in self.cells.values() for cell in cells}


@dataclass(frozen=True)
class GroupView:
    """Models of one kind, and how many of them each detector flagged."""

    name: str
    models: list[ModelView]
    flagged: dict[str, str] = field(default_factory=dict)


def render_bench(opened: Opened, folder: Path) -> str:
    """The page. Nothing is fetched and no script runs: filters are style sheets.

    What comes from results is escaped as in the report of a scan. Pictures are there where cells and
    models kept them, and together stay below ``IMAGE_BYTES``.

    Args:
        folder: of the results.

    Raises:
        ValueError: no result there, or one of other settings.
    """
    cells = opened.cells(folder)
    found = {cell.path: cell.result() for cell in cells}
    if not any(found.values()):
        raise ValueError(f"no cell of {folder} has a result yet")
    groups = _groups(opened, cells, found)
    models = [model for group in groups for model in group.models]
    present = {status for model in models for status in model.statuses}
    names = {
        "attack": list(dict.fromkeys(model.attack for model in models)),
        "trigger": list(dict.fromkeys(model.trigger for model in models)),
        "data": list(dict.fromkeys(model.data for model in models)),
        "verdict": sorted(present, key=lambda s: (_STATUSES.index(s) if s in _STATUSES else 99, s)),
    }
    states = [result.status if result else "missing" for result in found.values()]
    done = [result for result in found.values() if result]
    page = environment().get_template("bench.html.j2")
    return page.render(
        opened=opened,
        groups=groups,
        filters=names,
        numbers={title: {name: i for i, name in enumerate(rows)} for title, rows in names.items()},
        tasks=list(opened.suite.tasks),
        counts={state: states.count(state) for state in ("done", "failed", "missing")},
        seconds=sum(result.seconds for result in done),
        evaluations=sum(result.evaluations for result in done),
        commits=sorted({result.commit or "not known" for result in done}),
    )


def _groups(opened: Opened, cells: Sequence[Cell], found: dict[Path, Result | None]) -> list[GroupView]:
    kept = sum(1 for cell in cells for name in _FILES if (_evidence(cell) / name).exists())
    true = 2 * len(cells) + 2 * len(opened.zoo.models)  # beside every cell
    budget = min(_LARGEST_IMAGE, IMAGE_BYTES // (kept + true))
    groups: dict[str, list[ModelView]] = {}
    for place, cell in enumerate(cells):
        if cell.kind != "model":
            continue
        group, _ = group_of(opened.zoo, cell.name, found[cell.path])
        rows: dict[str, list[CellView]] = {}
        for other, tested in enumerate(cells):
            if tested.given.get("model") == cell.name and "task" in tested.given:
                view = _cell(f"c{other}", tested, found[tested.path], group == CLEAN, budget)
                rows.setdefault(str(tested.given["task"]), []).append(view)
        model = _model(f"c{place}", opened, cell, found[cell.path], rows, budget)
        groups.setdefault(group, []).append(model)
    return [GroupView(name, models, _flagged(models)) for name, models in groups.items()]


def _flagged(models: Sequence[ModelView]) -> dict[str, str]:
    """By task, of the models with a verdict; nothing for a task that gives none."""
    found = {}
    for task in dict.fromkeys(task for model in models for task in model.cells):
        statuses = [cell.status for model in models for cell in model.cells.get(task, [])]
        judged = [status for status in statuses if status in (*_VERDICTS, "failed")]
        if judged and "measured" not in statuses:
            share = rate(judged.count(Verdict.BACKDOORED), len(judged))
            ends = f"{share.low:.2f} to {share.high:.2f}"
            found[task] = f"{judged.count(Verdict.BACKDOORED)} of {len(judged)} ({ends})"
    return found


def _model(
    key: str,
    opened: Opened,
    cell: Cell,
    result: Result | None,
    rows: dict[str, list[CellView]],
    budget: int,
) -> ModelView:
    recipe: Recipe = opened.zoo.models[cell.name]
    attacked = recipe.attack is not None and recipe.options.get("poison_rate") != 0
    value = result.value if result else {}
    measured = value.get("measured") or {}
    status = "missing" if result is None else {"done": "measured"}.get(result.status, result.status)
    asr = measured.get("asr")
    return ModelView(
        name=cell.name,
        attack=str(recipe.attack) if attacked else CLEAN,
        trigger=str(recipe.trigger) if attacked else "none",
        data=recipe.data,
        asr=float(asr) if attacked and isinstance(asr, int | float) else None,
        cell=_view(key, cell, result, status, facts=_facts(value), pictures=_planted(cell, budget)),
        cells=rows,
    )


def _cell(key: str, cell: Cell, result: Result | None, clean: bool, budget: int) -> CellView:
    if result is None:
        return _view(key, cell, None, "missing")
    value = result.value
    if result.status == "failed":
        return _view(key, cell, result, "failed", wrong=True, facts=[("error", str(result.error))])
    if cell.kind != "detect":
        measures = {row["name"]: row for row in value.get("measures", [])}
        facts = [(name, _measure(row)) for name, row in measures.items()]
        short = f"ASR {number(measures['ASR']['value'])}" if "ASR" in measures else "done"
        return _view(key, cell, result, "measured", short=short, facts=facts)
    verdict, score = str(value.get("verdict")), value.get("score")
    wanted = Verdict.NO_EVIDENCE if clean else Verdict.BACKDOORED
    pictures = [
        picture_of_file(_evidence(cell) / name, name.removesuffix(".png"), caption, budget)
        for name, caption in _FILES.items()
        if (_evidence(cell) / name).is_file()
    ]
    return _view(
        key,
        cell,
        result,
        verdict,
        short="no score" if score is None else f"{score:.2f}",
        wrong=verdict != wanted,
        facts=_facts(value),
        pictures=pictures,
    )


def _view(
    key: str,
    cell: Cell,
    result: Result | None,
    status: str,
    *,
    short: str = "",
    wrong: bool = False,
    facts: Sequence[tuple[str, str]] = (),
    pictures: Sequence[Picture] = (),
) -> CellView:
    resolved = flattened(result.resolved) if result else []
    rows = [*facts, *_cost(result)]
    given = flattened(cell.given)
    return CellView(
        key, cell.name, status, short, wrong, rows, given, resolved, _text(result), list(pictures)
    )


def _facts(value: dict[str, Any]) -> Rows:
    """Every number and word of a value, numbers with four digits."""
    rows: Rows = []
    for name, one in value.items():
        if isinstance(one, dict):
            rows += [(f"{name}: {inner}", shown) for inner, shown in _facts(one)]
        elif isinstance(one, float):
            rows.append((name, number(one)))
        elif one is not None:
            rows.append((name, str(one)))
    return rows


def _measure(row: dict[str, Any]) -> str:
    value, low, high = (number(row[name]) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}], n = {row['n']:,}"


def _cost(result: Result | None) -> Rows:
    if result is None:
        return []
    about = result.environment
    return [
        ("evaluations", f"{result.evaluations:,}"),
        ("seconds", f"{result.seconds:.1f}"),
        ("seed", str(result.seed)),
        ("started", result.started),
        ("device", f"{about.device}, threads: {about.threads} of {result.cores} cores"),
        ("platform", f"{about.platform}, Python {about.python}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items())),
        ("commit", result.commit or "not known"),
        ("address", result.address),
    ]


def _evidence(cell: Cell) -> Path:
    return cell.path.parent / "evidence" / cell.path.stem / "candidate-1"


def _planted(cell: Cell, budget: int) -> list[Picture]:
    """The true trigger and target, where the model and its record are still there."""
    folder = cell.path.with_suffix("")
    if not (folder / FILE).is_file():
        return []
    planted = load_backdoor(folder)
    pairs = [("true trigger", stretched(planted.shift.numpy()), "The true trigger, contrast raised.")]
    if isinstance(planted.target, Target):
        pairs.append(("true target", planted.target.image.numpy(), "The true target."))
    return [picture(np.asarray(image)[None], alt, caption, budget) for alt, image, caption in pairs]


def _text(result: Result | None) -> Markup:
    """The JSON, ASCII alone and escaped; control characters are escapes of JSON already."""
    if result is None:
        return Markup("")
    text = json.dumps(result.model_dump(mode="json"), indent=2)
    rest = len(text) - _LARGEST_JSON
    return escape(text[:_LARGEST_JSON] + (f"\n... {rest:,} more characters" if rest > 0 else ""))
