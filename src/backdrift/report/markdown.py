"""The report for a job page or a comment: GitHub's Markdown."""

from __future__ import annotations

from backdrift.core.alerts import Alert, alerts, inspection_alerts
from backdrift.core.results import Report, ScanDocument
from backdrift.core.rules import RULES
from backdrift.report.text import false_positive_rate, headline, number, unscanned, visible

_MAX_CHARACTERS = 300
_LITERAL = frozenset(" -/,()")


def render_markdown(document: ScanDocument) -> str:
    """A table of verdicts, then what asks for an answer, what was not measured and what failed.

    Text from a checkpoint appears as itself: every character that Markdown, HTML or an automatic link
    could be made of is written as an entity.
    """
    lines = ["## Backdrift", "", f"Exit code {document.exit_code}.", ""]
    reports = document.all_reports
    if reports:
        lines += ["| model | verdict | score | threshold | false positives | exit code |"]
        lines += ["|---|---|--:|--:|---|--:|"]
        lines += [_row(report) for report in reports]
    for seen in document.inspections:
        lines += ["", f"### {_plain(seen.path)}", "", "Files only: the model was not run.", ""]
        lines += [_line(alert, alert.file) for alert in inspection_alerts(seen)] or ["- No findings."]
    for failure in document.failures:
        lines += ["", f"**{unscanned(failure)}** {_plain(failure.path)}: {_plain(failure.message)} "]
        lines[-1] += f"({failure.rule}, exit code {failure.exit_code})"
    for report in reports:
        lines += ["", f"### {_plain(report.subject.path)}", "", *_details(report)]
    if document.notices:
        lines += ["", "### Notices", "", *(f"- {_plain(notice)}" for notice in document.notices)]
    if reports:
        lines += ["", "NO EVIDENCE is not a certificate: the search found nothing within its budget."]
    return "\n".join(lines) + "\n"


def _row(report: Report) -> str:
    finding = headline(report)
    mark = " (partial)" * report.partial + " (uncalibrated)" * report.uncalibrated
    cells = [
        _plain(report.subject.path),
        f"**{report.verdict}**{mark}",
        number(finding.score if finding else None),
        number(finding.threshold if finding else None),
        false_positive_rate(finding.calibration if finding else None),
        str(report.exit_code),
    ]
    return f"| {' | '.join(cells)} |"


def _details(report: Report) -> list[str]:
    lines = [_plain(report.advice), ""]
    accepted = {item.fingerprint: item for item in report.accepted}
    for alert in alerts(report):
        line = _line(alert, alert.part or alert.file)
        if alert.fingerprint in accepted:
            item = accepted[alert.fingerprint]
            line += f" *Accepted until {item.expires}:* {_plain(item.reason)}"
        lines.append(line)
    if report.subject.declared:
        lines.append("- The checkpoint labels itself as backdoored; no verdict reads that.")
    if report.partial:
        lines.append(f"- Partial. Stages that ended: {_plain('; '.join(report.stages), 2000)}")
    left = "; ".join(f"{part.what} ({part.why})" for part in report.not_measured) or "nothing"
    lines.append(f"- Not measured: {_plain(left, 2000)}")
    lines += [f"- {_plain(w.file)}: SHA-256 `{w.sha256}`" for w in report.subject.weights]
    return lines


def _line(alert: Alert, place: str) -> str:
    where = ", ".join(filter(None, (alert.level, place)))
    return f"- **{alert.rule} {RULES[alert.rule].name}** ({_plain(where)}): {_plain(alert.message)}"


def _plain(text: str, limit: int = _MAX_CHARACTERS) -> str:
    shown = visible(text, limit)
    return "".join(char if char.isalnum() or char in _LITERAL else f"&#{ord(char)};" for char in shown)
