"""Tables of a benchmark's results: rates of detectors with their intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import Any

from backdrift.bench.runner import Cell, Result
from backdrift.bench.zoo import Suite
from backdrift.core.results import Verdict
from backdrift.metrics.rates import Estimate, auroc, paired, rate

CLEAN, WEAK, ALL = "clean", "weak", "all backdoored"


@dataclass(frozen=True)
class Run:
    """One detector on one model.

    Args:
        group: ``clean``, the kind of the model's group, or ``weak`` where its own ASR is below
            ``Recipe.until``.
    """

    task: str
    model: str
    group: str
    attack: str
    result: Result

    @property
    def flagged(self) -> bool:
        """BACKDOORED; INCONCLUSIVE and a failure are not, so they count as an error on a backdoored one."""
        return bool(self.result.value.get("verdict") == Verdict.BACKDOORED)

    @property
    def wrong(self) -> bool:
        """An INCONCLUSIVE and a failure are wrong on a clean model as well."""
        wanted = Verdict.NO_EVIDENCE if self.group == CLEAN else Verdict.BACKDOORED
        return bool(self.result.value.get("verdict") != wanted)


def runs(zoo: Suite, cells: Sequence[Cell]) -> list[Run]:
    """Every detection that has a result, with what its model is."""
    models = {cell.name: cell.result() for cell in cells if cell.kind == "model"}
    found = []
    for cell in cells:
        result = cell.result() if cell.kind == "detect" else None
        if result is None:
            continue
        model = str(cell.given["model"])
        group, attack = group_of(zoo, model, models[model])
        found.append(Run(str(cell.given["task"]), model, group, attack, result))
    return found


def group_of(zoo: Suite, model: str, built: Result | None) -> tuple[str, str]:
    """The row of the tables that a model belongs to, given its result, and the attack in it."""
    recipe = zoo.models[model]
    if recipe.attack is None or recipe.options.get("poison_rate") == 0:
        return CLEAN, CLEAN
    measured = (built.value.get("measured") or {}) if built else {}
    strong = measured.get("asr", 0.0) >= recipe.until
    return (zoo.kinds.get(model, recipe.attack) if strong else WEAK), recipe.attack


Pooled = Mapping[str, Sequence[str]]
"""Names of rows, and the kinds of models that they show together."""


def detection_table(found: Sequence[Run], pooled: Pooled = MappingProxyType({})) -> list[dict[str, Any]]:
    """A row for every task and group: n, rate of flags, wrong verdicts, AUROC, distances, ASR, cost."""
    rows = []
    for task in dict.fromkeys(run.task for run in found):
        mine = [run for run in found if run.task == task]
        clean = [run for run in mine if run.group == CLEAN]
        for name, members in _groups(mine, pooled).items():
            if members:
                rows.append(_row(task, name, members, clean))
    return rows


def _groups(mine: Sequence[Run], pooled: Pooled) -> dict[str, list[Run]]:
    """The runs of one task by row: clean, all, what is pooled, every kind, every attack."""
    strong = [run for run in mine if run.group not in (CLEAN, WEAK)]
    groups = {CLEAN: [run for run in mine if run.group == CLEAN], ALL: strong}
    for name, kinds in pooled.items():
        groups[name] = [run for run in strong if run.group in kinds]
    for name in dict.fromkeys(run.group for run in mine):
        groups.setdefault(name, [run for run in mine if run.group == name])
    for attack in dict.fromkeys(run.attack for run in strong):
        groups.setdefault(f"attack {attack}", [run for run in strong if run.attack == attack])
    return groups


def comparison_table(found: Sequence[Run], ours: str, pooled: Pooled) -> list[dict[str, Any]]:
    """How much more often ``ours`` is right than each other task, over the models that both were run on.

    Right is NO EVIDENCE on a clean model and BACKDOORED on another; a row for every other task and group,
    with the difference of the rates and its paired interval.
    """
    mine = {(run.model, run.result.seed): run for run in found if run.task == ours}
    rows = []
    for task in dict.fromkeys(run.task for run in found if run.task != ours):
        theirs = [r for r in found if r.task == task and (r.model, r.result.seed) in mine]
        for name, members in _groups(theirs, pooled).items():
            if members:
                pairs = [(not mine[r.model, r.result.seed].wrong, not r.wrong) for r in members]
                apart = paired([p[0] for p in pairs], [p[1] for p in pairs])
                rows.append({"task": task, "group": name, "difference": apart})
    return rows


def evaluation_table(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for every model that was measured: task, model, seed, and its measures by name."""
    rows = []
    for cell in cells:
        result = cell.result() if cell.kind == "evaluate" else None
        if result is not None:
            about = {"task": cell.given["task"], "model": cell.given["model"], "seed": cell.seed}
            measures = {measure["name"]: measure for measure in result.value.get("measures", [])}
            rows.append(about | {"status": result.status, "measures": measures})
    return rows


def _row(task: str, group: str, members: list[Run], clean: list[Run]) -> dict[str, Any]:
    flagged = rate(sum(run.flagged for run in members), len(members))
    row: dict[str, Any] = {"task": task, "group": group, "n": len(members), "flagged": flagged}
    row["wrong"] = sum(run.wrong for run in members)
    row["inconclusive"] = sum(run.result.value.get("verdict") == Verdict.INCONCLUSIVE for run in members)
    row["failed"] = sum(run.result.status == "failed" for run in members)
    if group != CLEAN and clean:
        row["auroc"] = auroc(_scores(clean), _scores(members))
    for key in ("l2_r", "cos_r", "l2_mean", "cos_mean"):
        row[key] = _median([run.result.value.get("distances", {}).get(key) for run in members])
    for key in ("asr_inverted", "asr_true", "rate_without_trigger"):
        row[key] = _median([run.result.value.get("success", {}).get(key) for run in members])
    row["evaluations"] = _median([run.result.evaluations for run in members if run.result.evaluations])
    row["seconds"] = _median([run.result.value.get("seconds") for run in members])
    return row


def _scores(members: list[Run]) -> list[float]:
    """No score is the least suspicious one."""
    found = [run.result.value.get("score") for run in members]
    return [float("-1e9") if score is None else float(score) for score in found]


def _median(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return median(known) if known else None


HEADS = (
    "task | group | n | flagged | wrong | inconclusive | failed | AUROC | L2 to r | cos r | L2 to E[R] | "
    "cos E[R] | ASR inverted | ASR true | without | evaluations | seconds"
)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :func:`detection_table`; medians over models from L2 on."""
    lines = [f"| {HEADS} |", "|" + "---|" * (HEADS.count("|") + 1)]
    for row in rows:
        cells = [row["task"], row["group"], str(row["n"]), _interval(row["flagged"])]
        cells += [str(row[key]) for key in ("wrong", "inconclusive", "failed")]
        cells.append(_interval(row["auroc"]) if "auroc" in row else "")
        cells += [_number(row[key], 1 if key.startswith("l2") else 2) for key in _MEDIANS]
        cells += [_number(row["evaluations"], 0), _number(row["seconds"], 0)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison_markdown(rows: Sequence[dict[str, Any]], ours: str) -> str:
    """The rows of :func:`comparison_table`."""
    lines = [f"| {ours} less | group | n | right verdicts, difference |", "|---|---|---|---|"]
    for row in rows:
        apart = row["difference"]
        lines.append(f"| {row['task']} | {row['group']} | {apart.n} | {_interval(apart)} |")
    return "\n".join(lines)


def evaluation_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :func:`evaluation_table`; an empty cell was not measured."""
    names = list(dict.fromkeys(name for row in rows for name in row["measures"]))
    lines = [f"| {' | '.join(['task', 'model', 'seed', *names])} |", "|" + "---|" * (3 + len(names))]
    for row in rows:
        cells = [row["task"], row["model"], f"{row['seed']}" + (" failed" * (row["status"] == "failed"))]
        for name in names:
            found = row["measures"].get(name)
            cells.append("" if found is None else _span(found["value"], found["low"], found["high"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


COLUMNS = ("task", "row", "seed", "quantity", "n", "value", "low", "high")


def tidy_csv(
    detections: Sequence[dict[str, Any]],
    comparisons: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    ours: str | None = None,
) -> str:
    """The rows of all three tables as one CSV, a line for every number, with full precision.

    ``row`` is a group of models, or a model with its seed where it was measured. ``low`` and ``high`` are
    the ends of a 95% interval; medians and counts have none.
    """
    lines: list[tuple[Any, ...]] = []
    for row in detections:
        for name, found in row.items():
            if name in ("task", "group", "n") or found is None:
                continue
            lines.append((row["task"], row["group"], "", name, *_numbers(found, row["n"])))
    for row in comparisons:
        quantity = f"right verdicts, {ours} less this"
        lines.append((row["task"], row["group"], "", quantity, *_numbers(row["difference"], 0)))
    for row in evaluations:
        for name, m in row["measures"].items():
            lines.append(
                (row["task"], row["model"], row["seed"], name, m["n"], m["value"], m["low"], m["high"])
            )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *lines])
    return text.getvalue()


def _numbers(found: Any, n: int) -> tuple[Any, ...]:
    if isinstance(found, Estimate):
        return found.n, found.value, found.low, found.high
    return n, found, "", ""


_MEDIANS = ("l2_r", "cos_r", "l2_mean", "cos_mean", "asr_inverted", "asr_true", "rate_without_trigger")


def _interval(estimate: Estimate) -> str:
    return _span(estimate.value, estimate.low, estimate.high)


def _span(value: float | None, low: float | None, high: float | None) -> str:
    ends = (value, low, high)
    return "" if value is None else "{} [{}, {}]".format(*("?" if e is None else f"{e:.2f}" for e in ends))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
