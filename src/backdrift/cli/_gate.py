"""From reports to the exit code of a run."""

from __future__ import annotations

from pathlib import Path

import typer

from backdrift.cli._baseline import Baseline, accept, read_baseline, today, unused
from backdrift.core.alerts import exit_code
from backdrift.core.results import Report, ScanDocument, combined_exit_code
from backdrift.core.rules import Level


class Gate:
    """Judges reports one after another and collects them in ``document``.

    Args:
        fail_on: the mildest level of a finding that is exit code 1.
        strict: an uncalibrated answer is a 2.
        exit_zero: a 1 becomes a 0, in the exit code of the run alone; a report keeps its own.
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

    def judge(self, report: Report | None) -> None:
        """Adds a report with its exit code; None is the failure that was added to the document last."""
        if report is None:
            self._codes.append(self.document.failures[-1].exit_code)
            return
        self.document.notices += accept(report, self._baseline, today())
        report.exit_code = exit_code(report, fail_on=self._fail_on, strict=self._strict)
        self._codes.append(0 if self._exit_zero and report.exit_code == 1 else report.exit_code)
        self.document.reports.append(report)

    def close(self, quiet: bool) -> ScanDocument:
        """The document with the exit code of the run; tells what became of the baseline."""
        self.document.notices += unused(self._baseline, self.document.reports)
        self.document.exit_code = combined_exit_code(self._codes)
        for notice in () if quiet else self.document.notices:
            typer.echo(notice, err=True)
        return self.document
