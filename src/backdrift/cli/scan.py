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
from backdrift.cli._options import BatchSize, Device, Options, Quiet, Seed, check_device, settings
from backdrift.cli._outputs import below, check_evidence, outputs, save
from backdrift.core.rules import Level

if TYPE_CHECKING:
    from backdrift.core.results import Report, ScanDocument

NAME = "scan"


def main(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders, or org/name@revision.")],
    budget: Annotated[
        str, typer.Option("--budget", help="quick (5,000 evaluations), standard (46,000) or deep.")
    ] = "standard",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="FORMAT[=FILE]", help="text, json, sarif, markdown, html; repeatable."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for a format without one.")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option("--evidence", help="Folder for trigger and target.")
    ] = None,
    detector: Annotated[str, typer.Option("--detector", help="See: backdrift list.")] = "backdrift",
    option: Options = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="MODEL is a folder of models: scan every one below.")
    ] = False,
    fail_on: Annotated[
        Level, typer.Option("--fail-on", help="The mildest finding that is exit code 1; see: rules.")
    ] = "error",
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Accepted findings; see: backdrift baseline.")
    ] = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 where it would be 1.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 2, not 0, when nothing is found uncalibrated.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Folder of reports, used again where they hold."),
    ] = None,
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
    from backdrift.cli._gate import Gate
    from backdrift.cli._hub import refuse_references
    from backdrift.cli._resume import Kept, settings_now
    from backdrift.cli._static import look
    from backdrift.core.registry import build
    from backdrift.core.results import combined_exit_code

    wanted = outputs(formats, output)
    if evidence is not None:
        check_evidence(evidence)
    isolation = Isolation(
        in_process, allow_pickle, timeout, max_params, max_size, max_memory, classes or []
    )
    isolation.check()
    gate = Gate(fail_on, strict, exit_zero, baseline)
    models = below(models) if recursive else models
    if static_only:
        _needs_a_scan(evidence=evidence, baseline=baseline, resume=resume, strict=strict or None)
        refuse_references(models, "--static-only")
        return look(models, isolation.bounds, wanted, verbose, quiet, fail_on, exit_zero)
    options = settings(option)
    build("detection", detector, {**options, "budget": budget})
    if dry_run:
        refuse_references(models, "--dry-run")
        return _dry_run(models, detector, budget, options, isolation)
    if device != "cpu":
        check_device(device)
    how = {"detector": detector, "budget": budget, "batch_size": batch_size, "seed": seed, "device": device}
    kept = None if resume is None else Kept(resume, settings_now(how, options), isolation.classes)
    for path in models:
        report = kept.find(path) if kept else None
        if report is None:
            report = _scan(path, gate.document, isolation, {**how, "options": options}, quiet)
            if report is not None and kept:
                kept.keep(report)
        elif not quiet:
            typer.echo(f"{path}: taken from {resume}", err=True)
        gate.judge(report)
    document = gate.close(quiet)
    return combined_exit_code([document.exit_code, *save(document, wanted, evidence, verbose, quiet)])


def _needs_a_scan(**given: object) -> None:
    name = next((name for name, value in given.items() if value is not None), None)
    if name is not None:
        raise ValueError(f"--{name} is about verdicts, and --static-only gives none: leave one out")


def _scan(
    path: str,
    document: ScanDocument,
    isolation: Isolation,
    how: dict[str, Any],
    quiet: bool,
) -> Report | None:
    from backdrift.cli._hub import scan_any
    from backdrift.cli._progress import progress_bar
    from backdrift.core.results import Failure
    from backdrift.io.errors import CheckpointError, printable

    try:
        with progress_bar(Path(path).name, quiet) as progress:
            command = shlex.join(["backdrift", *sys.argv[1:]])
            return scan_any(path, isolation, progress, **how, command=command)
    except CheckpointError as error:
        failure = Failure(path=path, message=str(error), exit_code=error.exit_code, rule=error.rule)
        document.failures.append(failure)
    except Exception as error:  # whatever a model does, the others keep their verdicts
        message = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        document.failures.append(Failure(path=path, message=message, exit_code=2))
    typer.echo(f"backdrift: {document.failures[-1].message}", err=True)
    return None


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
        if planned.codec is not None:
            image = "x".join(map(str, planned.codec.image_shape))
            typer.echo(f"  decodes by {planned.codec.weights.name} to images {image}")
        for left in planned.not_scanned:
            typer.echo(f"  leaves {left.what}: {left.why}")
        typer.echo(
            f"  {detector}, {budget}: at most {method.most_evaluations():,} network evaluations "
            f"per weight file (limit {BUDGETS[budget]:,})"
        )
    return combined_exit_code(codes)
