"""The report for a terminal."""

from __future__ import annotations

from io import StringIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from backdrift.core.alerts import LEVELS
from backdrift.core.results import (
    Calibration,
    Failure,
    Finding,
    Inspection,
    Report,
    ScanDocument,
    Verdict,
)
from backdrift.core.static import StaticFinding
from backdrift.report.text import (
    NOT_MEASURED,
    false_positive_rate,
    headline,
    number,
    plural,
    score_and_threshold,
    unscanned,
    visible,
)

_MOST_FILES = 5
_STYLES = {
    Verdict.BACKDOORED: "bold red",
    Verdict.NO_EVIDENCE: "bold blue",
    Verdict.INCONCLUSIVE: "bold yellow",
}


def render_console(
    document: ScanDocument, *, verbose: int = 0, width: int | None = None, color: bool = False
) -> str:
    """A short table: the verdict, how far to trust it, what it cost, and one sentence of advice.

    Of a checkpoint whose files alone were looked at: what they are, and each finding in a line.

    Args:
        document: what to show.
        verbose: from 1 on, the scores of every finding are added, and what is not scanned.
        width: columns of the terminal, 100 when it is not known.
        color: whether to write ANSI colours.
    """
    out = StringIO()
    console = Console(
        file=out,
        width=width or 100,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        legacy_windows=False,
    )
    reports = document.all_reports
    if len(reports) == 1:
        _print_single(console, reports[0])
    elif reports:
        _print_many(console, reports)
    if verbose:
        for report in reports:
            for finding in report.findings:
                _print_scores(console, report, finding)
    for seen in document.inspections:
        for line in _inspection_lines(seen, verbose):
            console.print(Text(visible(line)), soft_wrap=True)
    for failure in document.failures:
        console.print(_failure_line(failure))
    if len(document.reports) + len(document.inspections) + len(document.failures) != 1:
        console.print(f"exit code {document.exit_code}")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _print_single(console: Console, report: Report) -> None:
    finding = headline(report)
    calibration = finding.calibration if finding else None
    rate = false_positive_rate(calibration)
    if calibration is not None:
        rate += f" on {plural(calibration.n_clean, 'clean model')}"
    detector = f"{finding.detector} on {finding.weights}" if finding else NOT_MEASURED
    limit = report.cost.evaluations_limit
    rows = {
        "score": score_and_threshold(finding),
        "false positives": rate,
        "calibration": _calibration(calibration),
        "detector": detector,
        "declared": _declared(report),
        "files": _files(report),
        "not measured": _not_measured(report),
        "evaluations": f"{report.cost.evaluations:,} of {limit:,}",
        "seconds": f"{report.cost.seconds:.1f}",
        "exit code": str(report.exit_code),
    }
    if report.accepted:
        rows["accepted"] = _accepted(report)
    if report.partial:
        rows["so far"] = "; ".join(f"{f.weights}: {f.reason}" for f in report.findings) or "nothing judged"
        rows["stages"] = "; ".join(report.stages)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(visible(value)))
    console.print(Text.assemble(_verdict(report), "  ", visible(report.subject.path)))
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print(Text(visible(report.advice)))


def _print_many(console: Console, reports: list[Report]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("model", overflow="fold")
    table.add_column("verdict", min_width=len("(uncalibrated)"))
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("threshold", justify="right", no_wrap=True)
    table.add_column("false positives", justify="right")
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("exit", justify="right", no_wrap=True)
    for report in reports:
        finding = headline(report)
        table.add_row(
            Text(visible(report.subject.path)),
            _verdict(report),
            _number_or_dash(finding.score if finding else None),
            _number_or_dash(finding.threshold if finding else None),
            false_positive_rate(finding.calibration if finding else None),
            f"{report.cost.seconds:.1f}",
            str(report.exit_code),
        )
    console.print(table)
    for report in reports:
        name = Text(visible(report.subject.path), style="bold")
        console.print(Text.assemble(name, ": ", visible(report.advice)))
        finding = headline(report)
        remarks = (
            f"declared: {_declared(report)}; detector: {finding.detector if finding else 'none'}, "
            f"{report.cost.evaluations:,} evaluations; files: {_files(report)}; "
            f"not measured: {_not_measured(report)}"
        )
        if report.accepted:
            remarks += f"; accepted: {_accepted(report)}"
        console.print(Padding(Text(visible(remarks), style="dim"), (0, 0, 0, 2)))


def _print_scores(console: Console, report: Report, finding: Finding) -> None:
    title = f"{report.subject.path}: {finding.detector} on {finding.weights}"
    console.print(Text.assemble("\n", (visible(title), "bold")))
    console.print(Text(visible(finding.reason)))
    if not finding.scores:
        console.print("no scores")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("score", overflow="fold")
    for name in ("value", "threshold"):
        table.add_column(name, justify="right")
    table.add_column("suspicious when")
    table.add_column("meaning", overflow="fold")
    for score in finding.scores:
        table.add_row(
            Text(visible(score.name)),
            number(score.value),
            _number_or_dash(score.threshold),
            score.suspicious_when,
            Text(visible(score.meaning)),
        )
    console.print(table)


def _verdict(report: Report) -> Text:
    mark = " (partial)" * report.partial + " (uncalibrated)" * report.uncalibrated
    return Text.assemble((report.verdict.value, _STYLES[report.verdict]), mark)


def _declared(report: Report) -> str:
    return "yes, labels itself as backdoored" if report.subject.declared else "no"


def _accepted(report: Report) -> str:
    return "; ".join(f"{a.rule} until {a.expires} ({a.reason})" for a in report.accepted)


def _calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return "none"
    if calibration.in_range:
        return calibration.id
    why = "; ".join(calibration.out_of_range)
    return f"{calibration.id}, which does not cover this model" + (f": {why}" if why else "")


def _not_measured(report: Report) -> str:
    return "; ".join(f"{part.what} ({part.why})" for part in report.not_measured) or "nothing"


def _files(report: Report) -> str:
    """The gravest findings about files; the rest is in the JSON."""
    gravest = sorted(report.static, key=lambda finding: -LEVELS.index(finding.level))
    listed = [_file(finding) for finding in gravest]
    more = [f"and {len(listed) - _MOST_FILES:,} more"] if len(listed) > _MOST_FILES else []
    return "; ".join([*listed[:_MOST_FILES], *more]) or "no findings"


def _file(finding: StaticFinding) -> str:
    return f"{finding.rule} {finding.level}: {finding.file or 'the model'}: {finding.message}"


def _inspection_lines(seen: Inspection, verbose: int) -> list[str]:
    size, count = "x".join(map(str, seen.sample_shape)), plural(len(seen.static), "finding")
    lines = [f"{seen.path}: {seen.format}, samples {size}, {count}; the model was not run"]
    lines += [f"  {w.file}: {w.parameters:,} values, {w.dtype}" for w in seen.weights]
    lines += [f"  {_file(finding)}" for finding in seen.static]
    if verbose:
        lines += [f"  not scanned: {left.what}: {left.why}" for left in seen.not_measured]
    return lines


def _number_or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)


def _failure_line(failure: Failure) -> Text:
    message = f"  {failure.path}: {failure.message} ({failure.rule}, exit code {failure.exit_code})"
    return Text.assemble((unscanned(failure), "bold"), visible(message))
