"""``backdrift baseline REPORT``: writes down which findings are accepted."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

NAME = "baseline"


def main(
    report: Annotated[Path, typer.Argument(help="A report of backdrift scan --format json.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The baseline; entries are added to one that exists.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why the risk is taken, and by whom.")],
    expires: Annotated[str, typer.Option("--expires", metavar="YYYY-MM-DD", help="The last day.")],
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="Only findings of this rule; repeatable. Default: error and warning."),
    ] = None,
) -> int:
    """Accept the findings of a report until a day; they stay in every report, but not in the exit code."""
    from pydantic import ValidationError

    from backdrift.cli._baseline import Baseline, Entry, check_reason, read_baseline, today
    from backdrift.cli._options import check_folder, write_text
    from backdrift.cli.rules import named
    from backdrift.core.alerts import alerts
    from backdrift.core.results import ScanDocument
    from backdrift.report.text import plural

    day = _day(expires)
    if day < today():
        raise ValueError(f"--expires {expires}: that day is over")
    check_reason(reason)
    accepted = {named(text).id for text in rule or []}
    check_folder(output)
    try:
        document = ScanDocument.model_validate_json(report.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{report}: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError):
        raise ValueError(f"{report} is no report of: backdrift scan --format json") from None
    found = [
        Entry(
            fingerprint=alert.fingerprint,
            rule=alert.rule,
            model=one.subject.path,
            expires=day,
            reason=reason,
        )
        for one in document.reports
        for alert in alerts(one)
        if (alert.rule in accepted if rule else alert.level != "note")
    ]
    if not found:
        raise ValueError(f"{report} holds nothing to accept")
    known = read_baseline(output) if output.exists() else Baseline()
    entries = {entry.fingerprint: entry for entry in [*known.accepted, *found]}
    ordered = sorted(entries.values(), key=lambda entry: (entry.model, entry.rule, entry.fingerprint))
    write_text(Baseline(accepted=ordered).model_dump_json(indent=2) + "\n", output)
    typer.echo(f"wrote {output}: {plural(len(found), 'finding')} accepted until {day}")
    return 0


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--expires {text}: expected a day, as 2027-01-31") from None
