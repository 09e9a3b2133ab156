"""One function for every format of a report."""

from __future__ import annotations

from collections.abc import Callable

from backdrift.core.results import ScanDocument
from backdrift.report.console import render_console
from backdrift.report.html import render_html
from backdrift.report.json import render_json
from backdrift.report.markdown import render_markdown
from backdrift.report.sarif import render_sarif

_RENDERERS: dict[str, Callable[[ScanDocument], str]] = {
    "text": render_console,
    "json": render_json,
    "sarif": render_sarif,
    "markdown": render_markdown,
    "html": render_html,
}

FORMATS = tuple(_RENDERERS)


def render(document: ScanDocument, format: str) -> str:
    """The document in one of ``FORMATS``.

    Raises:
        ValueError: the format is unknown.
    """
    if format not in _RENDERERS:
        raise ValueError(f"unknown report format {format!r}: choose from {', '.join(FORMATS)}")
    return _RENDERERS[format](document)
