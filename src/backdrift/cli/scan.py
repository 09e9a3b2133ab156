"""``backdrift scan``: a verdict for one checkpoint or several."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backdrift.cli._isolated import (
    AllowPickle,
    Classes,
    InProcess,
    Isolation,
    MaxMemory,
    MaxParams,
    MaxSize,
    Timeout,
)
from backdrift.cli._options import (
    BatchSize,
    Device,
    Options,
    Quiet,
    Seed,
    check_device,
    settings,
    write_text,
)

if TYPE_CHECKING:
    from backdrift.core.results import Report, ScanDocument

NAME = "scan"


def main(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Checkpoint folders.")],
    budget: Annotated[
        str, typer.Option("--budget", help="quick (5,000 evaluations), standard (46,000) or deep.")
    ] = "standard",
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="FORMAT[=FILE]", help="text, json or html; repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for a format without one.")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option("--evidence", help="Folder for trigger and target.")
    ] = None,
    detector: Annotated[str, typer.Option("--detector", help="See: backdrift list.")] = "backdrift",
    option: Options = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 2, not 0, when nothing is found uncalibrated.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load plan and cost; no weight is read.")
    ] = False,
    static_only: Annotated[
        bool, typer.Option("--static-only", help="Files, configs and headers; the model is not run.")
    ] = False,
    classes: Classes = None,
    allow_pickle: AllowPickle = False,
    timeout: Timeout = None,
    max_params: MaxParams = None,
    max_size: MaxSize = None,
    max_memory: MaxMemory = None,
    in_process: InProcess = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="More.")] = 0,
    quiet: Quiet = False,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 256,
) -> int:
    """Scan checkpoints for backdoors in their starting noise."""
    from backdrift.core.registry import build
    from backdrift.core.results import ScanDocument, combined_exit_code

    wanted = outputs(formats, output)
    isolation = Isolation(
        in_process, allow_pickle, timeout, max_params, max_size, max_memory, classes or []
    )
    isolation.check()
    if static_only:
        from backdrift.cli._static import look

        return look(models, isolation.bounds, wanted, verbose, quiet)
    build("detection", detector, {**settings(option), "budget": budget})
    if dry_run:
        return _dry_run(models, detector, budget, settings(option), isolation)
    if device != "cpu":
        check_device(device)
    if evidence is not None and evidence.exists() and not _is_empty_folder(evidence):
        raise ValueError(f"{evidence} is no empty folder: name a new one for the evidence")
    document = ScanDocument(reports=[], exit_code=0)
    codes = []
    for path in models:
        how = {"detector": detector, "budget": budget, "options": settings(option), "seed": seed}
        how |= {"device": device, "batch_size": batch_size}
        report = _scan(path, document, isolation, how, quiet)
        if report is None:
            codes.append(document.failures[-1].exit_code)
            continue
        if strict and report.uncalibrated and report.exit_code == 0:
            report.exit_code = 2
        codes.append(report.exit_code)
        document.reports.append(report)
    document.exit_code = combined_exit_code(codes)
    if document.reports:
        _save(document, wanted, evidence, verbose, quiet)
    return document.exit_code


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def outputs(formats: list[str] | None, output: Path | None) -> list[tuple[str, Path | None]]:
    """``["json", "html=r.html"]`` and ``-o`` to formats and files; None is standard output.

    Raises:
        ValueError: an unknown format, or two for one place.
    """
    from backdrift.report.formats import FORMATS

    found: list[tuple[str, Path | None]] = []
    for item in formats or ["text"]:
        name, sign, file = item.partition("=")
        if name not in FORMATS or (sign and not file):
            raise ValueError(f"--format {item}: expected {', '.join(FORMATS)}, or FORMAT=FILE")
        path = Path(file) if sign else output
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"cannot write {path}: no folder {path.parent}")
        if path is not None and path.is_dir():
            raise ValueError(f"cannot write {path}: it is a folder")
        found.append((name, path))
    places = [str(path) for _, path in found]
    if len(set(places)) < len(places):
        raise ValueError("two formats for one place: name a file for each, as --format html=FILE")
    return found


def _scan(
    path: str,
    document: ScanDocument,
    isolation: Isolation,
    how: dict[str, Any],
    quiet: bool,
) -> Report | None:
    from backdrift.cli._progress import progress_bar
    from backdrift.core.results import Failure
    from backdrift.io.errors import CheckpointError, printable

    try:
        with progress_bar(Path(path).name, quiet) as progress:
            command = shlex.join(["backdrift", *sys.argv[1:]])
            return isolation.scan(path, progress, **how, command=command)
    except CheckpointError as error:
        failure = Failure(path=path, message=str(error), exit_code=error.exit_code, rule=error.rule)
        document.failures.append(failure)
    except Exception as error:  # whatever a model does, the others keep their verdicts
        message = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        document.failures.append(Failure(path=path, message=message, exit_code=2))
    typer.echo(f"backdrift: {document.failures[-1].message}", err=True)
    return None


def _save(
    document: ScanDocument,
    wanted: list[tuple[str, Path | None]],
    evidence: Path | None,
    verbose: int,
    quiet: bool,
) -> None:
    from backdrift.report.console import render_console
    from backdrift.report.formats import render

    for name, path in wanted:
        if path is None and quiet:
            continue
        if name == "text":
            color = path is None and sys.stdout.isatty()
            text = render_console(document, verbose=verbose, color=color)
        else:
            text = render(document, name)
        write_text(text, path)
        if path is not None and not quiet:
            typer.echo(f"wrote {path}", err=True)
    if evidence is not None:
        from backdrift.io.evidence import save_evidence

        several = len(document.reports) > 1
        for number, report in enumerate(document.reports):
            save_evidence(report, evidence / str(number) if several else evidence)
        if not quiet:
            typer.echo(f"wrote {evidence}", err=True)


def _dry_run(
    models: list[str], detector: str, budget: str, options: dict[str, str], isolation: Isolation
) -> int:
    from backdrift.core.registry import build
    from backdrift.core.results import combined_exit_code
    from backdrift.detection._base import BUDGETS
    from backdrift.io.errors import CheckpointError
    from backdrift.io.plan import plan

    method = build("detection", detector, {**options, "budget": budget})
    codes = []
    for path in models:
        try:
            planned = plan(path, isolation.bounds)
        except CheckpointError as error:
            typer.echo(f"backdrift: {error}", err=True)
            codes.append(error.exit_code)
            continue
        codes.append(0)
        shape = "x".join(map(str, planned.sample_shape))
        typer.echo(f"{path}: {planned.format}, samples {shape}")
        for weights in planned.candidates:
            typer.echo(f"  scans {weights.name}: {weights.parameters:,} values, {weights.dtype}")
        for left in planned.not_scanned:
            typer.echo(f"  leaves {left.what}: {left.why}")
        typer.echo(
            f"  {detector}, {budget}: at most {method.most_evaluations():,} network evaluations "
            f"per weight file (limit {BUDGETS[budget]:,})"
        )
    return combined_exit_code(codes)
