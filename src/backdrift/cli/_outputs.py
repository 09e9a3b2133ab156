"""Where the formats of a scan go: checked before any work, written whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from backdrift.cli._options import check_folder, write_text

if TYPE_CHECKING:
    from backdrift.core.results import ScanDocument


def outputs(formats: list[str] | None, output: Path | None) -> list[tuple[str, Path | None]]:
    """``["json", "html=r.html"]`` and ``-o`` to formats and files; None is standard output.

    Raises:
        ValueError: an unknown format, two for one place, or a place that cannot be written to.
    """
    from backdrift.report.formats import FORMATS

    found: list[tuple[str, Path | None]] = []
    for item in formats or ["text"]:
        name, sign, file = item.partition("=")
        if name not in FORMATS or (sign and not file):
            raise ValueError(f"--format {item}: expected {', '.join(FORMATS)}, or FORMAT=FILE")
        path = Path(file) if sign else output
        if path is not None:
            _check_file(path)
        found.append((name, path))
    places = [str(path) for _, path in found]
    if len(set(places)) < len(places):
        raise ValueError("two formats for one place: name a file for each, as --format html=FILE")
    return found


def check_evidence(folder: Path) -> None:
    """Fails before any work when the evidence cannot lie there.

    Raises:
        ValueError: the folder is not new or empty, or cannot be made.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is no empty folder: name a new one for the evidence")
    parents = (parent for parent in folder.absolute().parents if parent.is_dir())
    _check_writable(folder, next(parents))


def _check_file(path: Path) -> None:
    check_folder(path)
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    if path.is_file() or not path.exists():
        _check_writable(path, path.parent)


def _check_writable(path: Path, folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; name another place") from None


def save(
    document: ScanDocument,
    wanted: list[tuple[str, Path | None]],
    evidence: Path | None,
    verbose: int,
    quiet: bool,
) -> list[int]:
    """Writes every format and the evidence; what cannot be written costs a line, and the rest goes on.

    Args:
        quiet: to files only, and without a word about it. Text of failures alone never goes to standard
            output: they have been told on standard error.

    Returns:
        A 2 for each thing that could not be written.
    """
    codes = []
    answers = document.all_reports or document.inspections
    for name, path in wanted:
        if path is None and (quiet or (name == "text" and not answers)):
            continue
        try:
            write_text(_rendered(document, name, path, verbose), path)
        except OSError as error:
            codes.append(_cannot_write(path or "standard output", error, document.exit_code))
            continue
        if path is not None and not quiet:
            typer.echo(f"wrote {path}", err=True)
    if evidence is None or not document.all_reports:
        return codes
    try:
        _save_evidence(document, evidence)
    except OSError as error:
        return [*codes, _cannot_write(evidence, error, document.exit_code)]
    if not quiet:
        typer.echo(f"wrote {evidence}", err=True)
    return codes


def _rendered(document: ScanDocument, name: str, path: Path | None, verbose: int) -> str:
    from backdrift.report.console import render_console
    from backdrift.report.formats import render

    if name != "text":
        return render(document, name)
    color = path is None and sys.stdout.isatty()
    return render_console(document, verbose=verbose, color=color and os.environ.get("TERM") != "dumb")


def _save_evidence(document: ScanDocument, folder: Path) -> None:
    from backdrift.io.evidence import save_evidence

    reports = document.all_reports
    several = len(reports) > 1
    for number, report in enumerate(reports):
        save_evidence(report, folder / str(number) if several else folder)


def _cannot_write(place: Path | str, error: OSError, exit_code: int) -> int:
    reason = error.strerror or type(error).__name__
    typer.echo(
        f"backdrift: cannot write {place}: {reason} (the scan itself ended with exit code {exit_code})",
        err=True,
    )
    return 2
