"""``backdrift bench``: a population against detectors, one result per cell."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from backdrift.cli._options import Quiet, check_device, check_folder, write_text

if TYPE_CHECKING:
    from backdrift.bench.tasks import Opened

app = typer.Typer(help="Run benchmarks, resumable and shareable.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A shipped benchmark, or a TOML file.")]
Folder = Annotated[Path, typer.Argument(help="Folder of the results.")]
Zoo = Annotated[
    Path | None, typer.Option("--zoo", help="Where the models lie or are built; OUTPUT/zoo without.")
]


Preset = Annotated[
    str, typer.Option("--preset", help="cpu, or another that it has: smoke, gpu, paper; see bench list.")
]

Tasks = Annotated[
    list[str] | None, typer.Option("--task", help="Only this one, and what it needs; repeatable.")
]


@app.command()
def run(
    suite: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")],
    preset: Preset = "cpu",
    task: Tasks = None,
    zoo: Zoo = None,
    retry: Annotated[bool, typer.Option("--retry", help="Do failed cells again.")] = False,
    executor: Annotated[
        Literal["in-process", "ray"], typer.Option("--executor", help="Cell after cell, or many at a time.")
    ] = "in-process",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", envvar="RAY_ADDRESS", help="Of a Ray cluster; this machine alone without."
        ),
    ] = None,
    gpus: Annotated[
        float, typer.Option("--gpus", help="With ray: share of a GPU for each cell that can use one.")
    ] = 1.0,
    quiet: Quiet = False,
) -> None:
    """Do what is missing; killed and run again it goes on, and several of these share a folder."""
    from backdrift.bench.executors import run_on_ray
    from backdrift.bench.runner import run_cells
    from backdrift.bench.tasks import run_bench
    from backdrift.cli._progress import progress_bar

    opened = _opened(suite, preset, output, zoo)
    if executor == "in-process":
        check_device(opened.suite.device)
    how = run_cells if executor == "in-process" else partial(run_on_ray, address=address, gpus=gpus)
    with progress_bar(suite, quiet) as progress:
        found = run_bench(opened, output, tasks=task or (), retry=retry, progress=progress, executor=how)
    failed = [name for name, status in found.items() if status == "failed"]
    if not quiet:
        typer.echo(f"{len(found)} cells, {len(failed)} failed")
    for name in failed:
        typer.echo(f"failed: {name} (see: backdrift bench status {output})", err=True)
    if failed:
        raise typer.Exit(2)


@app.command()
def status(folder: Folder) -> None:
    """Say how far a run is, and why cells failed."""
    from backdrift.bench.tasks import open_bench

    groups: dict[str, list[str]] = {}
    for cell in open_bench(folder).cells(folder):
        result = cell.result()
        text = "missing" if result is None else result.status
        groups.setdefault(str(cell.given.get("task", "models")), []).append(text)
        if result is not None and result.status == "failed":
            typer.echo(f"failed: {cell.name}: {result.error}")
    for title, texts in groups.items():
        counts = ", ".join(f"{texts.count(t)} {t}" for t in ("done", "failed", "missing"))
        typer.echo(f"{title}: {counts}")


@app.command()
def plan(
    suite: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("bench"),
    preset: Preset = "cpu",
    task: Tasks = None,
    zoo: Zoo = None,
) -> None:
    """List the work and estimate its time on this machine, in one process, before anything runs."""
    import torch

    from backdrift.bench.estimate import estimate

    opened = _opened(suite, preset, output, zoo)
    lines = estimate(opened.suite, opened.zoo, opened.cells(output, task or ()))
    width = max(len(line.title) for line in lines)
    for line in lines:
        typer.echo(
            f"{line.title:{width}s}  {line.missing:4d} of {line.cells:4d} cells to do, at most "
            f"{line.evaluations:13,d} evaluations, {line.seconds / 60:7.1f} min"
        )
    total = sum(line.seconds for line in lines)
    typer.echo(f"{'all':{width}s}  at most {total / 3600:.1f} h")
    if opened.suite.device == "cuda" and not torch.cuda.is_available():
        typer.echo("backdrift: there is no GPU here; these are the times of its CPU", err=True)


@app.command()
def table(
    folder: Folder,
    format: Annotated[
        Literal["markdown", "csv"], typer.Option("--format", help="csv has a line for every number.")
    ] = "markdown",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; standard output without.")
    ] = None,
) -> None:
    """Print the tables of what is there."""
    from backdrift.bench import tables
    from backdrift.bench.tasks import open_bench

    opened = open_bench(folder)
    cells, suite = opened.cells(folder), opened.suite
    found = tables.runs(opened.zoo, cells)
    detections = tables.detection_table(found, suite.pooled)
    others = tables.comparison_table(found, suite.ours, suite.pooled) if suite.ours else []
    measured = tables.evaluation_table(cells)
    if not detections and not measured:
        raise ValueError(f"no task in {folder} has a result yet")
    if format == "csv":
        text = tables.tidy_csv(detections, others, measured, suite.ours)
    else:
        parts = [tables.markdown(detections)] if detections else []
        parts += [tables.comparison_markdown(others, suite.ours or "")] if others else []
        parts += [tables.evaluation_markdown(measured)] if measured else []
        text = "\n\n".join(parts)
    if output is not None:
        check_folder(output)
    write_text(text, output)


@app.command()
def report(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")],
) -> None:
    """Write one page that needs no network: models against tasks, every cell with JSON and pictures."""
    from backdrift.bench.report import render_bench
    from backdrift.bench.tasks import open_bench

    opened = open_bench(folder)
    check_folder(output)
    write_text(render_bench(opened, folder), output)


@app.command(name="list")
def list_benchmarks() -> None:
    """List the shipped benchmarks."""
    from backdrift.bench.tasks import bench_suites, load_bench, presets

    for name in bench_suites():
        loaded, population = load_bench(name)
        counts = f"{len(population.models)} models, {len(loaded.tasks)} tasks, {', '.join(presets(name))}"
        typer.echo(f"{name:18s} {counts}: {loaded.description}")


def _opened(name: str, preset: str, output: Path, zoo: Path | None) -> Opened:
    from backdrift.bench.tasks import Opened, load_bench

    suite, population = load_bench(name, preset)
    models = "zoo" if zoo is None else os.path.relpath(zoo, output)
    return Opened(suite=suite, zoo=population, models=models, name=Path(name).stem, preset=preset)
