"""``backdrift list``: every plug-in."""

from __future__ import annotations

import typer

NAME = "list"


def main() -> None:
    """List attacks, inversions, detectors of models and of inputs, repairs."""
    from backdrift.core.registry import KINDS, available

    for kind in KINDS:
        typer.echo(kind)
        for name, summary in available(kind).items():
            typer.echo(f"  {name:16s} {summary}")
