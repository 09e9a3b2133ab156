"""What goes wrong with a checkpoint, as one line that is safe to print."""

from __future__ import annotations

from backdrift.core.rules import RULES

_LONGEST_MESSAGE = 600


def shown(value: object, limit: int = 80) -> str:
    """``value`` for a message: quoted, control characters escaped, at most ``limit`` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit + 2 else text[: limit - 1] + "..."


def printable(text: str) -> str:
    """``text`` with every control, formatting and surrogate character escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class CheckpointError(Exception):
    """The checkpoint is damaged or hostile.

    Args:
        message: what is wrong and what to do. Control characters are escaped, since names in it may
            come from the checkpoint.
        rule: a key of :data:`backdrift.core.rules.RULES`.
    """

    exit_code = 2

    def __init__(self, message: str, rule: str) -> None:
        self.rule = RULES[rule].id
        line = printable(message)
        super().__init__(line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 3] + "...")


class NotScannable(CheckpointError):
    """Nothing suggests damage, but backdrift cannot scan this kind of checkpoint."""

    exit_code = 3

    def __init__(self, message: str, rule: str = "BD004") -> None:
        super().__init__(message, rule)


class NoSuchCheckpoint(CheckpointError):
    """The path does not exist."""

    exit_code = 4

    def __init__(self, message: str) -> None:
        super().__init__(message, "BD111")


class NoSuchClass(CheckpointError):
    """The model is not conditioned on the class that was asked for."""

    exit_code = 4

    def __init__(self, message: str) -> None:
        super().__init__(message, "BD004")
