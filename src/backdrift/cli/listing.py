"""``backdrift list``: every plug-in, and what else goes by name."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

NAME = "list"

Names = Literal["data", "triggers", "targets", "samplers"]


def main(
    names: Annotated[
        Names | None, typer.Argument(help="What goes by name beside methods: list that alone.")
    ] = None,
) -> None:
    """List attacks, inversions, detectors of models and of inputs, repairs; or data, triggers, targets."""
    from backdrift.core.registry import KINDS, available

    if names is not None:
        typer.echo("\n".join(_names(names)))
        return
    for kind in KINDS:
        typer.echo(kind)
        for name, summary in available(kind).items():
            typer.echo(f"  {name:16s} {summary}")
    typer.echo("data, triggers, targets, samplers: backdrift list data, and so on")


def _names(kind: Names) -> list[str]:
    """Imports torch, which ``backdrift list`` alone does not."""
    from backdrift.attacks.patterns import TARGETS, TRIGGERS
    from backdrift.core.sampling import SAMPLERS
    from backdrift.data import DATASETS

    return {
        "data": list(DATASETS.values()),
        "triggers": [*TRIGGERS, "learned", "png:PATH"],
        "targets": [*TARGETS, "class:NAME", "data:DATASET@CLASS", "png:PATH"],
        "samplers": list(SAMPLERS),
    }[kind]
