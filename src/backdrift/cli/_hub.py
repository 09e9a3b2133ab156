"""Scans of ``org/name@revision``: downloaded here, since the process that scans has no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backdrift.cli._isolated import Isolation
    from backdrift.cli._progress import Progress
    from backdrift.core.results import Report
    from backdrift.io.hub import Fetched, Reference

_LISTED = 5


def scan_any(path: str, isolation: Isolation, progress: Progress | None, **how: Any) -> Report:
    """Scans what ``path`` names: a folder, a file, or a model on the Hub.

    Raises:
        ValueError: ``--allow-pickle`` for a model on the Hub, or no extra to download it.
        CheckpointError: as :func:`backdrift.scan` and :func:`backdrift.io.hub.fetch`.
    """
    from backdrift.io.hub import fetch, parse_reference
    from backdrift.isolation.parent import ScanStopped

    reference = parse_reference(path)
    if reference is None:
        return isolation.scan(path, progress, **how)
    if isolation.allow_pickle:
        raise ValueError(f"{reference}: --allow-pickle is for folders; pickle is never downloaded")
    fetched = fetch(reference, isolation.bounds, progress)
    try:
        return _named(isolation.scan(str(fetched.folder), progress, **how), reference, fetched)
    except ScanStopped as stopped:
        _named(stopped.partial, reference, fetched)
        raise


def refuse_references(models: list[str], option: str) -> None:
    """Raises ``ValueError`` for a model on the Hub, which only a whole scan downloads."""
    from backdrift.io.hub import parse_reference

    for path in models:
        if parse_reference(path) is not None:
            raise ValueError(f"{path}: {option} takes folders; only a scan downloads a model")


def _named(report: Report, reference: Reference, fetched: Fetched) -> Report:
    """The report with the commit in the place of the folder, and what of the repository was left there."""
    from backdrift.core.alerts import exit_code
    from backdrift.core.results import NotScanned
    from backdrift.io.errors import printable
    from backdrift.io.static import findings_by_name

    name = f"{reference.repository}@{fetched.commit}"
    report.subject = report.subject.model_copy(update={"path": name})
    report.static += [f for f in findings_by_name(fetched.left) if f not in report.static]
    if fetched.left:
        listed = ", ".join(map(printable, fetched.left[:_LISTED]))
        more = f" and {len(fetched.left) - _LISTED} more" if len(fetched.left) > _LISTED else ""
        report.not_measured.append(
            NotScanned(what=f"left on the Hub: {listed}{more}", why="not downloaded")
        )
    report.exit_code = exit_code(report)
    return report
