"""``backdrift rules`` and ``backdrift explain RULE``: what a scan can report, and what to do about it."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from backdrift.core.rules import Rule


def main() -> None:
    """List every rule by which a scan reports something."""
    from backdrift.core.rules import RULES

    for rule in RULES.values():
        typer.echo(f"{rule.id}  {rule.level:8s} {rule.name:24s} {rule.summary}")


def explain(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="BD001, or its name: backdoored.")],
) -> None:
    """Say what a rule means and what to do about it."""
    found = named(rule)
    typer.echo(f"{found.id} {found.name} ({found.level})\n\n{found.summary}\n\n{found.help}")


def named(text: str) -> Rule:
    """The rule with this identifier or name.

    Raises:
        ValueError: there is none; says which one may have been meant.
    """
    from backdrift.core.rules import RULES

    names = {name: known for known in RULES.values() for name in (known.id.lower(), known.name)}
    found = names.get(text.lower())
    if found is None:
        near = get_close_matches(text.lower(), names, n=1)
        hint = f"; did you mean {names[near[0]].id}, {names[near[0]].name}?" if near else ""
        raise ValueError(f"no rule {text!r}{hint} (see: backdrift rules)")
    return found
