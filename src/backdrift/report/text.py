"""Words and numbers that every format of a report shares."""

from __future__ import annotations

import math

from backdrift.core.results import Calibration, Failure, Finding, Report
from backdrift.io.errors import printable

NOT_MEASURED = "not measured"


def visible(text: str, limit: int | None = None) -> str:
    r"""Text from a model, with nothing in it that a terminal or a browser would obey.

    Control, bidirectional and zero-width characters become escapes such as ``\x1b`` or ``\u202e``;
    what exceeds ``limit`` characters is cut, and the cut is announced.
    """
    hidden = 0 if limit is None else max(0, len(text) - limit)
    shown = text[: len(text) - hidden]
    escaped = printable(shown)
    return f"{escaped} [{hidden:,} more characters]" if hidden else escaped


def number(value: float | None) -> str:
    """Four significant digits, or words where there is no number."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e6):
        return f"{int(value):,}"
    return f"{value:.4g}"


def moment(stamp: str) -> str:
    """An ISO time of a report as people write it: ``2026-11-21 22:58:48 UTC``."""
    return stamp.replace("T", " ").replace("+00:00", " UTC")


def percent(rate: float) -> str:
    """A rate in per cent with one decimal."""
    return f"{100 * rate:.1f}%"


def plural(count: int, noun: str) -> str:
    """``1 model``, ``2 models``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def unscanned(failure: Failure) -> str:
    """What a failure means for its model."""
    return "NOT SCANNED" if failure.partial is None else "NOT FINISHED"


def headline(report: Report) -> Finding | None:
    """The finding that stands for a report: the first one with the report's own verdict."""
    same = [finding for finding in report.findings if finding.verdict == report.verdict]
    return next(iter(same or report.findings), None)


def false_positive_rate(calibration: Calibration | None) -> str:
    """The rate with its interval, for example ``1.0% [0.2%, 5.4%]``."""
    if calibration is None:
        return NOT_MEASURED
    low, high = calibration.interval
    return f"{percent(calibration.false_positive_rate)} [{percent(low)}, {percent(high)}]"


def score_and_threshold(finding: Finding | None) -> str:
    """The score beside the threshold it was compared with."""
    if finding is None or finding.score is None:
        return NOT_MEASURED
    if finding.threshold is None:
        return f"{number(finding.score)} (no threshold)"
    return f"{number(finding.score)} (threshold {number(finding.threshold)})"
