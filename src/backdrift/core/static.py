"""What a report says about files, the process that read them, and who accepts it. Torch-free."""

from __future__ import annotations

from datetime import date

from pydantic import BaseModel, ConfigDict

from backdrift.core.rules import RULES, Level


class Record(BaseModel):
    """A part of a report: frozen, without fields that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StaticFinding(Record):
    """What the files of a checkpoint show without running the model.

    It stands beside the verdict and never replaces it.

    Args:
        rule: a key of :data:`backdrift.core.rules.RULES`.
        level: that of the rule.
        file: name inside the checkpoint, safe to print; empty when it is no single file.
    """

    rule: str
    level: Level
    file: str
    message: str

    @classmethod
    def of(cls, rule: str, file: str, message: str) -> StaticFinding:
        """A finding with the level of its rule."""
        return cls(rule=rule, level=RULES[rule].level, file=file, message=message)


class Limit(Record):
    """One limit of the process that scanned, and whether the platform enforced it."""

    name: str
    held: bool
    detail: str


class WeightFacts(Record):
    """Weights as their header describes them; no value was read."""

    file: str
    dtype: str
    parameters: int


class Acceptance(Record):
    """A finding that somebody takes the risk of, from a baseline file.

    ``fingerprint`` is that of the alert (``core.alerts``), ``expires`` the last day on which it counts.
    """

    fingerprint: str
    rule: str
    expires: date
    reason: str
