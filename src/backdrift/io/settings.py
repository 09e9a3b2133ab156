"""What a setting of a config may be, in words and as a check. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backdrift.io.errors import CheckpointError, shown

MAX_BLOCKS = 16


@dataclass(frozen=True)
class Rule:
    """What a value must be: a check, and the same in words."""

    accepts: Callable[[Any], bool]
    expected: str


def is_int(value: Any, low: int, high: int) -> bool:
    """Whether ``value`` is a whole number in that range; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether ``value`` is a number in that range; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def whole(low: int, high: int) -> Rule:
    """A whole number, both ends included."""
    return Rule(lambda v: is_int(v, low, high), f"a whole number in {low}..{high}")


def number(low: float, high: float) -> Rule:
    """Any number, both ends included."""
    return Rule(lambda v: is_number(v, low, high), f"a number in {low:g}..{high:g}")


def one_of(*values: Any) -> Rule:
    """One of some texts."""
    return Rule(lambda v: isinstance(v, str) and v in values, f"one of {', '.join(map(str, values))}")


def optional(rule: Rule) -> Rule:
    """Null, or what ``rule`` says."""
    return Rule(lambda v: v is None or rule.accepts(v), f"null or {rule.expected}")


def list_of(rule: Rule) -> Rule:
    """A list of up to ``MAX_BLOCKS`` items, each as ``rule`` says."""
    return Rule(
        lambda v: isinstance(v, list) and 1 <= len(v) <= MAX_BLOCKS and all(map(rule.accepts, v)),
        f"a list of 1..{MAX_BLOCKS} items, each {rule.expected}",
    )


FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str) and len(v) <= 64, "a short text")


def check_settings(config: Mapping[str, Any], rules: Mapping[str, Rule], kind: str, name: str) -> None:
    """Whether every setting of a config is one of ``kind`` and within its bounds.

    Args:
        kind: the class that the config is for.
        name: what to call the file in a message.

    Raises:
        CheckpointError: it is not.
    """
    for key, value in config.items():
        if key not in rules:
            raise CheckpointError(f"{name}: {kind} has no setting {shown(key)}", "BD205")
        if not rules[key].accepts(value):
            raise CheckpointError(
                f"{name}: {key} must be {rules[key].expected}, not {shown(value)}", "BD206"
            )
