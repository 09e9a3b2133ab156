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
from backdrift.cli._outputs import check_evidence, outputs, save
from backdrift.core.rules import Level

if TYPE_CHECKING:
    from backdrift.core.results import Failure, Report

NAME = "scan"


def main(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders, or org/name@revision.")],
    budget: Annotated[
        str, typer.Option("--budget", help="quick (20,000 evaluations at most), standard (61,000) or deep.")
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
    from backdrift.core.results import Report, combined_exit_code
    from backdrift.io.errors import printable

    wanted = outputs(formats, output)
    if evidence is not None:
        check_evidence(evidence)
    isolation = Isolation(
        in_process, allow_pickle, timeout, max_params, max_size, max_memory, classes or []
    )
    isolation.check()
    gate = Gate(fail_on, strict, exit_zero, baseline)
    models = _named(models, recursive)
    if static_only:
        _needs_a_scan(evidence=evidence, baseline=baseline, resume=resume, strict=strict or None)
        refuse_references(models, "--static-only")
        return look(models, isolation.bounds, wanted, verbose, quiet, fail_on, exit_zero)
    options = settings(option)
    method = build("detection", detector, {**options, "budget": budget})
    if dry_run:
        refuse_references(models, "--dry-run")
        return _dry_run(models, isolation, method, f"{detector}, {budget}")
    if device != "cpu":
        check_device(device)
    how = {"detector": detector, "budget": budget, "batch_size": batch_size, "seed": seed, "device": device}
    kept = None
    if resume is not None:
        kept = Kept(resume, settings_now(how, options), isolation.classes, isolation.bounds)
    for path in models:
        report = kept.find(path) if kept else None
        if report is not None:
            gate.judge(report)
            if not quiet:
                typer.echo(f"{printable(path)}: taken from {resume}", err=True)
            continue
        found = _scan(path, isolation, {**how, "options": options}, quiet, len(models) > 1)
        if kept and isinstance(found, Report):
            kept.keep(found)
        gate.judge(found)
    document = gate.close(quiet)
    quiet = quiet or not document.all_reports
    return combined_exit_code([document.exit_code, *save(document, wanted, evidence, verbose, quiet)])


def _named(folders: list[str], recursive: bool) -> list[str]:
    """Every checkpoint below some folders, each once; a folder without one stands for itself, and fails.

    Args:
        recursive: else the folders are the checkpoints.

    Raises:
        ValueError: an empty name, as of a variable that is not set; to the system it is this folder.
    """
    if "" in folders:
        raise ValueError("a MODEL is the empty text: name a folder, or . for this one")
    if not recursive:
        return folders
    from backdrift.io.discover import find_checkpoints
    from backdrift.io.errors import CheckpointError

    found: list[str] = []
    for folder in folders:
        try:
            found += map(str, find_checkpoints(folder))
        except CheckpointError:
            found.append(folder)
    return list(dict.fromkeys(found))


def _needs_a_scan(**given: object) -> None:
    name = next((name for name, value in given.items() if value is not None), None)
    if name is not None:
        raise ValueError(f"--{name} is about verdicts, and --static-only gives none: leave one out")


def _scan(
    path: str, isolation: Isolation, how: dict[str, Any], quiet: bool, several: bool
) -> Report | Failure:
    from backdrift.cli._gate import failed, tell
    from backdrift.cli._hub import scan_any
    from backdrift.cli._progress import progress_bar
    from backdrift.core.results import Failure
    from backdrift.io.errors import CheckpointError, printable

    try:
        with progress_bar(Path(path).name, quiet) as progress:
            command = shlex.join(["backdrift", *sys.argv[1:]])
            return scan_any(path, isolation, progress, **how, command=command)
    except CheckpointError as error:
        return failed(path, error, several)
    except Exception as error:  # whatever a model does, the others keep their verdicts
        message = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        failure = Failure(path=path, message=message, exit_code=2)
        tell(failure, several)
        return failure


def _dry_run(models: list[str], isolation: Isolation, method: Any, title: str) -> int:
    from backdrift.cli._gate import failed
    from backdrift.core.results import combined_exit_code
    from backdrift.detection._base import BUDGETS
    from backdrift.io.errors import CheckpointError, printable
    from backdrift.io.plan import plan

    codes = []
    for path in models:
        try:
            planned = plan(path, isolation.bounds)
        except CheckpointError as error:
            codes.append(failed(path, error, len(models) > 1).exit_code)
            continue
        codes.append(0)
        shape = "x".join(map(str, planned.sample_shape))
        typer.echo(f"{printable(path)}: {planned.format}, samples {shape}")
        for weights in planned.candidates:
            typer.echo(f"  scans {weights.name}: {weights.parameters:,} values, {weights.dtype}")
        if planned.codec is not None:
            image = "x".join(map(str, planned.codec.image_shape))
            typer.echo(f"  decodes by {planned.codec.weights.name} to images {image}")
        for left in planned.not_scanned:
            typer.echo(f"  leaves {left.what}: {left.why}")
        typer.echo(
            f"  {title}: at most {method.most_evaluations():,} network evaluations "
            f"per weight file (limit {BUDGETS[method.budget]:,})"
        )
    return combined_exit_code(codes)
