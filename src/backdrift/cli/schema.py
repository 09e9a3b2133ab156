"""``backdrift schema``: the JSON schema of a report."""

from __future__ import annotations

import json

import typer

NAME = "schema"


def main() -> None:
    """Print the JSON schema of what scan --format json writes."""
    from backdrift.report.json import schema

    typer.echo(json.dumps(schema(), indent=2, sort_keys=True))
