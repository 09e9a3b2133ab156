"""From reports to the exit code of a run."""

from __future__ import annotations

from pathlib import Path

import typer

from backdrift.cli._baseline import Baseline, accept, read_baseline, today, unused
from backdrift.core.alerts import exit_code
from backdrift.core.results import Failure, Report, ScanDocument, combined_exit_code
from backdrift.core.rules import Level
from backdrift.io.errors import CheckpointError, printable


def failed(path: str, error: CheckpointError, several: bool) -> Failure:
    """What stands for a checkpoint without an answer; see :func:`tell`."""
    failure = Failure(
        path=path,
        message=str(error),
        exit_code=error.exit_code,
        rule=error.rule,
        partial=getattr(error, "partial", None),
    )
    tell(failure, several)
    return failure


def tell(failure: Failure, several: bool) -> None:
    """One line on standard error; with the path in it where ``several`` checkpoints were named."""
    named = not several or failure.path in failure.message
    typer.echo(f"backdrift: {'' if named else printable(failure.path) + ': '}{failure.message}", err=True)


class Gate:
    """Judges reports one after another and collects them in ``document``.

    Args:
        fail_on: the mildest level of a finding that is exit code 1.
        strict: an uncalibrated answer is a 2.
        exit_zero: nothing is a 1, in the exit code of the run alone; a report keeps its own.
        baseline: file of accepted findings.

    Raises:
        ValueError: a baseline that cannot be read.
    """

    def __init__(
        self,
        fail_on: Level = "error",
        strict: bool = False,
        exit_zero: bool = False,
        baseline: Path | None = None,
    ) -> None:
        self.document = ScanDocument(reports=[], exit_code=0)
        self._fail_on, self._strict, self._exit_zero = fail_on, strict, exit_zero
        self._baseline = Baseline() if baseline is None else read_baseline(baseline)
        self._codes: list[int] = []

    def judge(self, report: Report | Failure) -> None:
        """Adds a report with its exit code, or what stands in the place of one."""
        if isinstance(report, Failure):
            self.document.failures.append(report)
            self._codes.append(report.exit_code)
            if report.partial is not None:
                self._weigh(report.partial)
            return
        self._weigh(report)
        self.document.reports.append(report)

    def _weigh(self, report: Report) -> None:
        self.document.notices += accept(report, self._baseline, today())
        report.exit_code = exit_code(report, fail_on=self._fail_on, strict=self._strict)
        counted = None if self._exit_zero else self._fail_on
        self._codes.append(exit_code(report, fail_on=counted, strict=self._strict))

    def close(self, quiet: bool) -> ScanDocument:
        """The document with the exit code of the run; tells what became of the baseline."""
        self.document.notices += unused(self._baseline, self.document.all_reports)
        self.document.exit_code = combined_exit_code(self._codes)
        for notice in () if quiet else self.document.notices:
            typer.echo(notice, err=True)
        return self.document
