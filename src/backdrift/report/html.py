"""The report for people: one file that needs no network and no script."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from backdrift.core.results import ScanDocument
from backdrift.report.text import moment, number, percent, plural, visible
from backdrift.report.views import report_views

_MAX_CHARACTERS = 1000


def render_html(document: ScanDocument) -> str:
    """The document as one page.

    Everything that comes from a model is escaped, and its control and bidirectional characters are
    spelled out. A content security policy forbids scripts and requests of any kind.
    """
    template = environment().get_template("report.html.j2")
    return template.render(document=document, views=report_views(document.all_reports))


@cache
def environment() -> Environment:
    """Of the templates: what they print is escaped and cut, unless it is ``Markup``."""
    made = Environment(
        loader=PackageLoader("backdrift.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_spelled_out,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(moment=moment, number=number, percent=percent, plural=plural)
    return made


def _spelled_out(value: Any) -> Any:
    """What every expression of the template passes through before it is escaped."""
    return value if isinstance(value, Markup) else visible(str(value), _MAX_CHARACTERS)
