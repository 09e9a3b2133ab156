"""``scan --static-only``: files, configs and headers, without torch and without a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from backdrift.cli._options import write_text

if TYPE_CHECKING:
    from backdrift.core.results import Inspection, ScanDocument
    from backdrift.core.rules import Level
    from backdrift.io.weights import Bounds


def look(
    models: list[str],
    bounds: Bounds,
    wanted: list[tuple[str, Path | None]],
    verbose: int,
    quiet: bool,
    fail_on: Level = "error",
    exit_zero: bool = False,
) -> int:
    """Inspects every model and writes what was asked for.

    Args:
        fail_on: the mildest level of a finding that is exit code 1.
        exit_zero: a 1 becomes a 0, in the exit code of the run alone.

    Returns:
        The exit code: 0 no finding of that level, 1 one, 2 damaged or hostile files, 3 not covered,
        4 no such path; of several models as for a scan.

    Raises:
        ValueError: a format that has no place for models without a verdict.
    """
    from backdrift.core.alerts import reaches
    from backdrift.core.results import Failure, ScanDocument, combined_exit_code
    from backdrift.io.errors import CheckpointError
    from backdrift.io.plan import inspect

    if any(name == "html" for name, _ in wanted):
        raise ValueError("--static-only writes text, json, sarif and markdown, not html")
    document = ScanDocument(reports=[], exit_code=0)
    for path in models:
        try:
            seen = inspect(path, bounds)
            code = int(reaches([finding.level for finding in seen.static], fail_on))
            document.inspections.append(seen.model_copy(update={"exit_code": code}))
        except CheckpointError as error:
            failure = Failure(path=path, message=str(error), exit_code=error.exit_code, rule=error.rule)
            document.failures.append(failure)
            typer.echo(f"backdrift: {error}", err=True)
    codes = [0 if exit_zero else item.exit_code for item in document.inspections]
    document.exit_code = combined_exit_code([*codes, *(item.exit_code for item in document.failures)])
    for name, place in wanted:
        text = _rendered(document, name, verbose)
        if (text and not quiet) or place is not None:
            write_text(text, place)
    return document.exit_code


def _rendered(document: ScanDocument, name: str, verbose: int) -> str:
    from backdrift.report.json import render_json
    from backdrift.report.markdown import render_markdown
    from backdrift.report.sarif import render_sarif

    machine = {"json": render_json, "sarif": render_sarif, "markdown": render_markdown}
    if name in machine:
        return machine[name](document)
    return "\n".join(line for item in document.inspections for line in _lines(item, verbose))


def _lines(item: Inspection, verbose: int) -> list[str]:
    from backdrift.report.text import plural, visible

    size = "x".join(map(str, item.sample_shape))
    lines = [
        f"{visible(item.path)}: {item.format}, samples {size}, {plural(len(item.static), 'finding')}; "
        "the model was not run"
    ]
    lines += [f"  {w.file}: {w.parameters:,} values, {w.dtype}" for w in item.weights]
    lines += [f"  {f.rule} {f.level}: {f.file or 'the model'}: {f.message}" for f in item.static]
    if verbose:
        lines += [f"  not scanned: {left.what}: {left.why}" for left in item.not_measured]
    return lines
