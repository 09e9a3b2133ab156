"""``backdrift zoo``: populations of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backdrift.cli._options import Quiet

app = typer.Typer(help="Build populations of models.", no_args_is_help=True)


@app.command()
def build(
    suite: Annotated[str, typer.Argument(help="A shipped suite, such as demo, or a TOML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the models.")] = Path("zoo"),
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed.")] = False,
    quiet: Quiet = False,
) -> None:
    """Build every model of a suite that is not there yet; several of these share a folder."""
    from backdrift.bench.zoo import build_suite, load_suite
    from backdrift.cli._progress import progress_bar

    loaded = load_suite(suite)
    with progress_bar(suite, quiet) as progress:
        found = build_suite(loaded, output, retry=retry, progress=progress)
    for name, result in found.items():
        if result.status == "failed":
            typer.echo(f"failed: {output / name}: {result.error}", err=True)
        elif not quiet:
            measured = result.value.get("measured")
            asr = f", ASR {measured['asr']:.2f}" if measured else ""
            typer.echo(f"{output / name}: {result.value['seconds']:.0f} s of training{asr}")
    if any(result.status == "failed" for result in found.values()):
        raise typer.Exit(2)


@app.command(name="list")
def list_suites() -> None:
    """List the shipped suites."""
    from backdrift.bench.zoo import load_suite, suites

    for name in suites():
        loaded = load_suite(name)
        typer.echo(f"{name:16s} {len(loaded.models):3d} models: {loaded.description}")
