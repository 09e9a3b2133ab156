"""What of a report asks for an answer, by rule: behind exit codes, baselines and SARIF. Torch-free."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from backdrift.core.results import Failure, Finding, Inspection, Report, Verdict
from backdrift.core.rules import RULES, Level

LEVELS: tuple[Level, ...] = ("note", "warning", "error")
"""Mildest first."""

BACKDOORED, UNDECIDED, UNCALIBRATED = "BD001", "BD002", "BD003"

_CLASS = re.compile(r" \((class \d+)\)$")


@dataclass(frozen=True)
class Alert:
    """One rule that one file broke.

    Args:
        rule: key of ``core.rules.RULES``.
        message: what was found there, as the scan put it; may hold text of the checkpoint.
        file: relative to the checkpoint; empty when it is no single file.
        sha256: of the weights (``Weights.sha256``); of what the files of a checkpoint show, the hash of all
            its weights' hashes, since those files are not read.
        part: what else tells it from others with the same rule and weights: a class, or a file.
    """

    rule: str
    message: str
    file: str
    sha256: str
    part: str = ""

    @property
    def level(self) -> Level:
        """Severity of the rule."""
        return RULES[self.rule].level

    @property
    def fingerprint(self) -> str:
        """SHA-256 of rule, weights and part: the same finding wherever the checkpoint lies."""
        return _digest(self.rule, self.sha256, self.part)


def alerts(report: Report) -> list[Alert]:
    """Every alert of a report, accepted ones too: first of the model, then of the files beside it."""
    digests = {weights.file: weights.sha256 for weights in report.subject.weights}
    whole = _digest(*digests.values())
    found = []
    for finding in report.findings:
        label = _CLASS.search(finding.weights)
        file, part = _CLASS.sub("", finding.weights), label[1] if label else ""
        sha256 = digests.get(finding.weights, "")
        found += [Alert(rule, message, file, sha256, part) for rule, message in _broken(finding)]
    return found + [Alert(item.rule, item.message, item.file, whole, item.file) for item in report.static]


def inspection_alerts(seen: Inspection) -> list[Alert]:
    """Alerts of a look at files alone; no weights were read, so that a place stands for them."""
    return [Alert(f.rule, f.message, f.file, "", f"{seen.path}\n{f.file}") for f in seen.static]


def failure_alert(failure: Failure) -> Alert:
    """What kept a checkpoint from being scanned; nothing can accept it."""
    return Alert(failure.rule, failure.message, "", "", f"{failure.path}\n{failure.message}")


def _digest(*parts: str) -> str:
    text = "\n".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def _broken(finding: Finding) -> list[tuple[str, str]]:
    """Rules and messages; NO EVIDENCE breaks none."""
    found = []
    if finding.verdict is Verdict.BACKDOORED:
        found.append((BACKDOORED, finding.reason))
    if finding.verdict is Verdict.INCONCLUSIVE:
        found.append((UNDECIDED, finding.reason))
    if finding.calibration is None:
        found.append((UNCALIBRATED, f"{finding.detector} has no calibration"))
    elif not finding.calibration.in_range:
        why = "; ".join(finding.calibration.out_of_range) or "the model is unlike its population"
        found.append((UNCALIBRATED, f"outside of calibration {finding.calibration.id}: {why}"))
    return found


def open_alerts(report: Report) -> list[Alert]:
    """The alerts that nobody has accepted."""
    accepted = {item.fingerprint for item in report.accepted}
    return [alert for alert in alerts(report) if alert.fingerprint not in accepted]


def reaches(levels: Iterable[Level], fail_on: Level | None) -> bool:
    """Whether any level is at least as grave as ``fail_on``; none is as None."""
    return fail_on is not None and any(LEVELS.index(level) >= LEVELS.index(fail_on) for level in levels)


def worst(verdicts: Iterable[Verdict], partial: bool) -> Verdict:
    """The verdict of a report with findings of these; a partial one never says NO EVIDENCE."""
    order = (Verdict.BACKDOORED, Verdict.INCONCLUSIVE, Verdict.NO_EVIDENCE)
    return min([*verdicts, *([Verdict.INCONCLUSIVE] if partial else [])], key=order.index)


def exit_code(report: Report, *, fail_on: Level | None = "error", strict: bool = False) -> int:
    """What a scan of this checkpoint ends with.

    Args:
        fail_on: the mildest level that is a 1; None leaves out every 1, and what it stood before shows.
        strict: an uncalibrated answer is a 2.

    Returns:
        1 for an open alert of that level, but for those that mean 2: an open INCONCLUSIVE, weights beside
        the others that are damaged and have no verdict, a scan that was ended before its time, and, with
        ``strict``, an open lack of calibration; else 0. ``fail_on`` never hides a 2.
    """
    left = open_alerts(report)
    twos = [alert for alert in left if _is_no_answer(alert, strict)]
    if reaches([alert.level for alert in left if alert not in twos], fail_on):
        return 1
    return 2 if twos or report.partial else 0


def _is_no_answer(alert: Alert, strict: bool) -> bool:
    damaged = alert.level == "error" and alert.rule.startswith(("BD2", "BD3", "BD4"))
    return damaged or alert.rule == UNDECIDED or (strict and alert.rule == UNCALIBRATED)
