"""A baseline: findings that somebody has accepted, each for a reason and until a day."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from backdrift.core.alerts import alerts
from backdrift.core.results import Report
from backdrift.core.rules import RULES
from backdrift.core.static import Acceptance


def check_reason(reason: str) -> str:
    """Raises ``ValueError`` for a reason without a word."""
    if not re.search(r"\w", reason):
        raise ValueError(f"reason {reason!r}: say why the risk is taken, and by whom")
    return reason


class Entry(BaseModel):
    """One accepted finding.

    Args:
        fingerprint: SHA-256 of rule and weights, as SARIF has it; other weights have another one.
        model: where it was found, for people.
        expires: the last day on which it counts, in UTC.
        reason: why the risk is taken, and by whom.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    rule: str
    model: str = ""
    expires: date
    reason: str

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        if rule not in RULES:
            raise ValueError("no such rule; see: backdrift rules")
        return rule

    @field_validator("reason")
    @classmethod
    def _said(cls, reason: str) -> str:
        return check_reason(reason)


class Baseline(BaseModel):
    """The file of ``--baseline``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["1.0"] = "1.0"
    accepted: list[Entry] = Field(default_factory=list)


def read_baseline(path: Path) -> Baseline:
    """Reads a baseline.

    Raises:
        ValueError: the file cannot be read, or an entry lacks something; the line names both.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--baseline {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--baseline {path}: not UTF-8 text") from None
    try:
        return Baseline.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"--baseline {path}: {place}: {first['msg']}") from None


def today() -> date:
    """The day in UTC, by which entries expire."""
    return datetime.now(UTC).date()


def accept(report: Report, baseline: Baseline, day: date) -> list[str]:
    """Puts what the baseline accepts on ``day`` into ``report.accepted``.

    Returns:
        One line for every entry that would have counted if it had not expired.
    """
    latest = sorted(baseline.accepted, key=lambda entry: entry.expires)
    entries = {entry.fingerprint: entry for entry in latest}
    expired = []
    for alert in alerts(report):
        entry = entries.get(alert.fingerprint)
        if entry is None:
            continue
        if entry.expires < day:
            expired.append(
                f"baseline: the acceptance of {alert.rule} in {report.subject.path} expired on "
                f"{entry.expires} ({entry.reason})"
            )
            continue
        report.accepted.append(
            Acceptance(
                fingerprint=entry.fingerprint, rule=alert.rule, expires=entry.expires, reason=entry.reason
            )
        )
    return expired


def unused(baseline: Baseline, reports: Iterable[Report]) -> list[str]:
    """One line for every entry that nothing in this run has matched, expired or not."""
    seen = {alert.fingerprint for report in reports for alert in alerts(report)}
    return [
        f"baseline: nothing here matches {entry.rule} of {entry.model or 'a model'} "
        f"({entry.fingerprint[:12]}...); remove the entry when that is so everywhere"
        for entry in baseline.accepted
        if entry.fingerprint not in seen
    ]
