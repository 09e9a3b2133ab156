"""``backdrift list``: every plug-in, and what else goes by name."""

from __future__ import annotations

from textwrap import fill

import typer

NAME = "list"


def main() -> None:
    """List every method by kind, and data, triggers, targets and samplers."""
    from backdrift.attacks.patterns import TARGETS, TRIGGERS
    from backdrift.core.registry import KINDS, available
    from backdrift.core.sampling import SAMPLERS
    from backdrift.data import DATASETS

    for kind in KINDS:
        typer.echo(kind)
        for name, summary in available(kind).items():
            typer.echo(f"  {name:16s} {summary}")
    for kind, names in {
        "data": DATASETS.values(),
        "triggers": (*TRIGGERS, "learned", "png:PATH"),
        "targets": (*TARGETS, "class:NAME", "data:DATASET@CLASS", "png:PATH"),
        "samplers": SAMPLERS,
    }.items():
        text = fill(", ".join(names), 100, break_on_hyphens=False)
        typer.echo("\n  ".join([kind, *text.splitlines()]))
