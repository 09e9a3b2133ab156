"""The report for code scanning: SARIF 2.1.0, in the part of it that GitHub reads."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from backdrift.core.alerts import Alert, alerts, failure_alert, inspection_alerts
from backdrift.core.results import Failure, Inspection, Report, ScanDocument
from backdrift.core.rules import RULES, Rule
from backdrift.core.static import Acceptance
from backdrift.report.json import portable
from backdrift.report.text import headline, visible

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
ROOT = "%SRCROOT%"
SECURITY_SEVERITY = {"error": "8.5", "warning": "5.0", "note": "2.0"}
"""GitHub's scale from 0 to 10: high, medium, low."""

_MAX_MESSAGE = 1000


def render_sarif(document: ScanDocument) -> str:
    """The document as one SARIF run with a result for every alert.

    A verdict that is open is a result of level warning, although SARIF has the kind ``open`` for it: with
    that kind no level is allowed, and viewers leave such results out. NO EVIDENCE is no result; verdicts
    and scores of all models stand in the properties of the run. What could not be scanned is a result of
    the rule that stopped the scan, and a notification of the invocation. Accepted findings are suppressed
    results.

    Locations are relative to the working directory, which in a job is that of the repository. GitHub
    needs a line, and weights have none: it is always the first.
    """
    reports = document.all_reports
    run = {
        "tool": {"driver": _driver(document)},
        "invocations": [_invocation(document)],
        "originalUriBaseIds": {ROOT: {"description": {"text": "The working directory of the scan."}}},
        "columnKind": "unicodeCodePoints",
        "results": [
            *(_result(report, alert) for report in reports for alert in alerts(report)),
            *(_seen(seen, alert) for seen in document.inspections for alert in inspection_alerts(seen)),
            *(_refused(failure) for failure in document.failures),
        ],
        "properties": {"models": [_model(report) for report in reports]},
    }
    tree = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(portable(tree), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _driver(document: ScanDocument) -> dict[str, Any]:
    reports = document.all_reports
    version = reports[0].version if reports else metadata.version("backdrift")
    return {"name": "backdrift", "version": version, "rules": [_rule(rule) for rule in RULES.values()]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.summary},
        "help": {"text": rule.help, "markdown": rule.help},
        "defaultConfiguration": {"level": rule.level},
        "properties": {
            "tags": ["security", "backdoor", "machine-learning"],
            "precision": "high",
            "security-severity": SECURITY_SEVERITY[rule.level],
        },
    }


def _invocation(document: ScanDocument) -> dict[str, Any]:
    found: dict[str, Any] = {
        "executionSuccessful": not document.failures,
        "exitCode": document.exit_code,
        "toolExecutionNotifications": [
            *(_failed(failure) for failure in document.failures),
            *({"level": "note", "message": {"text": visible(notice)}} for notice in document.notices),
        ],
    }
    reports = document.all_reports
    if reports:
        found["commandLine"] = visible(reports[0].command)
        found["startTimeUtc"] = _utc(min(report.started for report in reports))
        found["endTimeUtc"] = _utc(max(report.finished for report in reports))
    return found


def _utc(stamp: str) -> str:
    return stamp.replace("+00:00", "Z")


def _failed(failure: Failure) -> dict[str, Any]:
    how = "scanned" if failure.partial is None else "scanned to the end"
    text = visible(f"{failure.path} was not {how}: {failure.message}", _MAX_MESSAGE)
    return {
        "level": "error",
        "message": {"text": text},
        "locations": [_location(failure.path)],
        "properties": {"exitCode": failure.exit_code},
    }


def _result(report: Report, alert: Alert) -> dict[str, Any]:
    item = next((a for a in report.accepted if a.fingerprint == alert.fingerprint), None)
    file = f", {alert.file}" if alert.file else ""
    path = report.subject.path
    return {
        **_common(alert, f"{_name(path)}{file}", _place(path, alert.file)),
        "suppressions": [_suppression(item)] if item else [],
        "properties": {"sha256": alert.sha256, "declared": report.subject.declared},
    }


def _seen(seen: Inspection, alert: Alert) -> dict[str, Any]:
    return _common(alert, _name(seen.path), _place(seen.path, alert.file))


def _refused(failure: Failure) -> dict[str, Any]:
    return _common(failure_alert(failure), _name(failure.path), failure.path)


def _place(path: str, file: str) -> str:
    """A file of a checkpoint, which may be one safetensors file: others then lie beside it."""
    folder = os.path.dirname(path) if path.endswith(".safetensors") and file else path
    return os.path.join(folder, file)


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


def _common(alert: Alert, subject: str, path: str) -> dict[str, Any]:
    text = f"{RULES[alert.rule].summary} {subject}: {alert.message}"
    return {
        "ruleId": alert.rule,
        "ruleIndex": list(RULES).index(alert.rule),
        "level": alert.level,
        "message": {"text": visible(text, _MAX_MESSAGE)},
        "locations": [_location(path)],
        "partialFingerprints": {
            "primaryLocationLineHash": alert.fingerprint,  # the only one that GitHub reads
            "ruleAndWeights/v1": alert.fingerprint,
        },
    }


def _suppression(item: Acceptance) -> dict[str, Any]:
    reason = visible(item.reason, _MAX_MESSAGE)
    return {
        "kind": "external",
        "status": "accepted",
        "justification": reason,
        "properties": {"expires": item.expires.isoformat()},
    }


def _location(path: str) -> dict[str, Any]:
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(path), "uriBaseId": ROOT},
            "region": {"startLine": 1},
        }
    }


def _uri(path: str) -> str:
    """Relative to the working directory; a path that leads out of it is told from its model's folder on."""
    parts = PurePath(os.path.relpath(path)).parts
    inside = parts if ".." not in parts else PurePath(os.path.abspath(path)).parts[-3:]
    return quote("/".join(part.strip("/\\") for part in inside).encode("utf-8", "replace"))


def _model(report: Report) -> dict[str, Any]:
    finding = headline(report)
    return {
        "path": visible(report.subject.path),
        "verdict": str(report.verdict),
        "uncalibrated": report.uncalibrated,
        "partial": report.partial,
        "exitCode": report.exit_code,
        "score": finding.score if finding else None,
        "threshold": finding.threshold if finding else None,
        "weights": [{"file": visible(w.file), "sha256": w.sha256} for w in report.subject.weights],
    }
