"""``scan --static-only``: files, configs and headers, without torch and without a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backdrift.cli._outputs import save

if TYPE_CHECKING:
    from backdrift.core.rules import Level
    from backdrift.io.weights import Bounds


def look(
    models: list[str],
    bounds: Bounds,
    wanted: list[tuple[str, Path | None]],
    verbose: int,
    quiet: bool,
    fail_on: Level,
    exit_zero: bool,
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
    from backdrift.cli._gate import failed
    from backdrift.core.alerts import reaches
    from backdrift.core.results import ScanDocument, combined_exit_code
    from backdrift.io.errors import CheckpointError
    from backdrift.io.plan import inspect

    if any(name == "html" for name, _ in wanted):
        raise ValueError("--static-only writes text, json, sarif and markdown, not html")
    document = ScanDocument(reports=[], exit_code=0)
    codes = []
    for path in models:
        try:
            seen = inspect(path, bounds)
        except CheckpointError as error:
            document.failures.append(failed(path, error, len(models) > 1))
            codes.append(error.exit_code)
            continue
        code = int(reaches([finding.level for finding in seen.static], fail_on))
        document.inspections.append(seen.model_copy(update={"exit_code": code}))
        codes.append(0 if exit_zero else code)
    document.exit_code = combined_exit_code(codes)
    return combined_exit_code([document.exit_code, *save(document, wanted, None, verbose, quiet)])
