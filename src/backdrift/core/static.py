"""What a report says about files and about the process that read them. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from backdrift.core.rules import RULES, Level


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StaticFinding(_Record):
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


class Limit(_Record):
    """One limit of the process that scanned, and whether the platform enforced it."""

    name: str
    held: bool
    detail: str


class WeightFacts(_Record):
    """Weights as their header describes them; no value was read."""

    file: str
    dtype: str
    parameters: int
