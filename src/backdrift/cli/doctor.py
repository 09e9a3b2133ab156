"""``backdrift doctor``: what works on this machine, and how to fix the rest."""

from __future__ import annotations

import typer

NAME = "doctor"


def main() -> int:
    """Check this machine: exit 0 when scans can run, 2 when something that they need is broken."""
    from backdrift.cli._checks import CHECKS, State

    broken = 0
    for check in CHECKS:
        for found in check():
            broken += found.state is State.BROKEN
            typer.echo(f"{found.state:8s} {found.what}")
            if found.fix:
                typer.echo(f"{'':8s} fix: {found.fix}")
    typer.echo("scans can run here" if not broken else "scans cannot run here until that is fixed")
    return 2 if broken else 0
