"""Starts the process that scans, streams its progress, ends it when it goes too far."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backdrift.core.alerts import exit_code, worst
from backdrift.core.results import Report
from backdrift.core.static import Limit
from backdrift.io.errors import CheckpointError
from backdrift.io.plan import network_pickles
from backdrift.io.weights import Bounds
from backdrift.isolation import wire
from backdrift.isolation.limits import Limits
from backdrift.isolation.process import Run, checked, invalid

Progress = Callable[[int, int, str], None]

STOPPED = frozenset({"BD005", "BD006", "BD007", "BD008"})
"""Rules of scans that began and did not end."""


class ScanStopped(CheckpointError):
    """A scan that ended before its time: an error, never an answer.

    Args:
        error: why.
        partial: what was found up to then.
    """

    def __init__(self, error: CheckpointError, partial: Report) -> None:
        super().__init__(str(error), error.rule)
        self.partial = partial


def scan_isolated(
    path: str | Path,
    *,
    detector: str = "backdrift",
    budget: str = "standard",
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 256,
    options: dict[str, Any] | None = None,
    classes: Sequence[int] = (),
    bounds: Bounds | None = None,
    limits: Limits | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Report:
    """:func:`backdrift.scan` in a process of its own, with less power and an end.

    The report is the same but for ``limits``, which says what the platform enforced.

    Args:
        limits: memory and wall clock.
        allow_pickle: convert pickle weights in one more process (see :mod:`backdrift.io.convert`) and
            scan the result.

    Raises:
        ScanStopped: the process ran out of time or memory, or died, when the scan had begun.
        CheckpointError: as :func:`backdrift.scan`; that happened before; or it raised another error, as
            for an unknown detector (its ``rule`` says which).
    """
    job = {
        "task": "scan",
        "how": {
            "detector": detector,
            "budget": budget,
            "seed": seed,
            "device": device,
            "batch_size": batch_size,
            "options": options,
            "classes": list(classes),
        },
        "device": device,
        "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
        "bounds": asdict(bounds or Bounds()),
        "converted": {},
        "folder": os.getcwd(),
    }
    limits = limits or Limits()
    end = time.monotonic() + limits.seconds
    with tempfile.TemporaryDirectory(prefix="backdrift-") as scratch:
        if allow_pickle:
            job["converted"] = _convert_all(path, Path(scratch), bounds or Bounds(), limits, end)
        run = Run(path, job, limits, end, progress)
        command = command or f"backdrift.scan_isolated({str(path)!r}, budget={budget!r}, seed={seed})"
        try:
            report = _report(run.answers())
        except CheckpointError as error:
            partial = _partial(error, run.partial)
            if partial is None:
                raise
            raise ScanStopped(error, _named(partial, path, command)) from None
    return _named(report, path, command)


def _report(answers: Sequence[tuple[bytes, bytes]]) -> Report:
    evidence = [checked(wire.read_evidence, data) for kind, data in answers if kind == wire.ARRAYS]
    reports = [checked(wire.read_report, data) for kind, data in answers if kind == wire.REPORT]
    if len(reports) != 1:
        raise CheckpointError("the process that scanned ended without a report; no verdict", "BD008")
    report: Report = reports[0]
    if report.partial:
        raise invalid()
    report.evidence = evidence
    return report


def _partial(error: CheckpointError, stored: bytes) -> Report | None:
    """What a scan that was stopped had found, if it said anything that can be believed.

    Its process may have been told what to say: whatever that is, it is partial, and never NO EVIDENCE.
    """
    if error.rule not in STOPPED or not stored:
        return None
    try:
        report: Report = checked(wire.read_stored, stored)
    except CheckpointError:
        return None
    report.partial = True
    report.verdict = worst([finding.verdict for finding in report.findings], partial=True)
    report.advice = f"The scan was ended before its time, and this is no whole answer: {error}"
    report.exit_code = exit_code(report)
    return report


def _named(report: Report, path: str | Path, command: str) -> Report:
    report.subject = report.subject.model_copy(update={"path": str(path)})
    report.command, report.accepted = command, []  # only a baseline accepts
    return report


def probe(limits: Limits | None = None) -> list[Limit]:
    """What this platform enforces: starts a process, limits it, and asks."""
    limits = limits or Limits(seconds=60)
    job = {"task": "probe", "device": "cpu"}
    answers = Run(os.devnull, job, limits, time.monotonic() + limits.seconds).answers()
    return [Limit.model_validate(row) for kind, data in answers for row in json.loads(data)]


def _convert_all(
    path: str | Path, scratch: Path, bounds: Bounds, limits: Limits, end: float
) -> dict[str, str]:
    made: dict[str, str] = {}
    for number, (name, source) in enumerate(sorted(network_pickles(path).items())):
        target = scratch / f"{number}.safetensors"
        with target.open("wb") as file:
            job = {"task": "convert", "device": "cpu", "descriptor": file.fileno(), "size": bounds.size}
            Run(source, job, limits, end).answers(file.fileno())
        made[name] = str(target)
    return made
