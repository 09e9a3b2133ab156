"""What the HTML template shows: plots, pictures and tables prepared from a report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from backdrift.core.results import Array, Calibration, Curve, Evidence, Finding, Report, Verdict
from backdrift.report.images import MAX_TILES, Picture, channel_note, picture, stretched
from backdrift.report.plots import Strip, line_plot, strip_plot
from backdrift.report.text import false_positive_rate, headline, plural

IMAGE_BYTES = 1_500_000

_PICTURES_PER_EVIDENCE = 5
_MAX_ROWS = 80
_MAX_DEPTH = 3

LIMITS = (
    "NO EVIDENCE is not a certificate. It says that this search, within its budget, found no shift "
    "of the starting noise that makes the model draw a fixed target. A weaker or different backdoor "
    "may still be there.",
    "Only backdoors whose trigger is added to the starting noise are looked for. Triggers in "
    "prompts, text encoders, conditioning images or class labels are not.",
    "Text-to-image and other text-conditioned models are not covered.",
    "The inverted trigger and the recovered target are estimates. They need not equal what an "
    "attacker planted, pixel by pixel.",
    "The verdict rests on behaviour alone. Whether the checkpoint declares itself backdoored plays "
    "no part in it.",
)
UNCALIBRATED_LIMIT = (
    "This result is uncalibrated: no population of clean models like this one was measured, so its "
    "false-positive rate is unknown."
)


@dataclass(frozen=True)
class CurveView:
    """A plot and the words below it."""

    curve: Curve
    plot: Markup | None


@dataclass(frozen=True)
class FindingView:
    """A finding with its plots."""

    finding: Finding
    scores_plot: Markup | None
    rate: str
    curves: list[CurveView]


@dataclass(frozen=True)
class EvidenceView:
    """The pictures of one weight file.

    ``guarded`` pictures may show the attacker's target and stay blurred until they are asked for.
    """

    evidence: Evidence
    norm: float
    trigger: list[Picture]
    clean: Picture | None
    triggered: Picture | None
    target: Picture | None
    guarded: bool


@dataclass(frozen=True)
class ReportView:
    """Everything about one checkpoint."""

    report: Report
    headline: Finding | None
    findings: list[FindingView]
    evidence: list[EvidenceView]
    schedule: list[tuple[str, str]]
    network: list[tuple[str, str]]
    configuration: list[tuple[str, str]]
    limits: list[str]


def report_views(reports: list[Report]) -> list[ReportView]:
    """One view per report; together their pictures stay below ``IMAGE_BYTES``."""
    pictures = _PICTURES_PER_EVIDENCE * sum(len(report.evidence) for report in reports)
    budget = IMAGE_BYTES // max(1, pictures)
    return [_report_view(report, budget) for report in reports]


def _report_view(report: Report, budget: int) -> ReportView:
    subject = report.subject
    limits = [UNCALIBRATED_LIMIT] if report.uncalibrated else []
    return ReportView(
        report=report,
        headline=headline(report),
        findings=[_finding_view(finding) for finding in report.findings],
        evidence=[_evidence_view(item, report.verdict, budget) for item in report.evidence],
        schedule=flattened({"schedule": subject.schedule}),
        network=flattened(subject.network),
        configuration=flattened(report.config),
        limits=[*limits, *LIMITS],
    )


def _finding_view(finding: Finding) -> FindingView:
    return FindingView(
        finding=finding,
        scores_plot=_scores_plot(finding),
        rate=false_positive_rate(finding.calibration),
        curves=[CurveView(curve, line_plot(curve)) for curve in finding.curves],
    )


def _scores_plot(finding: Finding) -> Markup | None:
    strips = _reference_strips(finding.calibration) if finding.calibration else []
    nulls = finding.nulls
    if nulls:
        label = f"Shifts of equal norm on this model ({len(nulls)})"
        values, names = [null.score for null in nulls], [null.name for null in nulls]
        strips.append(Strip(label, values, "null", names))
    if finding.score is not None:
        strips.append(Strip("This model, inverted trigger", [finding.score], "this"))
    return strip_plot(strips, finding.threshold)


def _reference_strips(calibration: Calibration) -> list[Strip]:
    clean, bad = calibration.clean_scores, calibration.backdoored_scores
    strips = [
        Strip(f"Clean reference models ({len(clean)})", clean, "clean"),
        Strip(f"Backdoored reference models ({len(bad)})", bad, "backdoored"),
    ]
    return [strip for strip in strips if strip.values]


def _evidence_view(evidence: Evidence, verdict: Verdict, budget: int) -> EvidenceView:
    trigger = evidence.trigger
    note = channel_note(trigger.shape[0])
    if trigger.shape != evidence.clean_samples.shape[1:]:
        note += " It is a latent; target and samples are decoded."
    raw = "As found: values from -1 (black) to 1 (white), clamped." + note
    amplified = "Amplified: smallest value black, largest white." + note
    return EvidenceView(
        evidence=evidence,
        norm=float(np.linalg.norm(trigger.astype(np.float64))),
        trigger=[
            picture(trigger[None], "The inverted trigger, clamped to its range", raw, budget),
            picture(stretched(trigger)[None], "The inverted trigger, contrast raised", amplified, budget),
        ],
        clean=_samples(evidence.clean_samples, "plain noise", budget),
        triggered=_samples(evidence.triggered_samples, "noise with the inverted trigger", budget),
        target=None if evidence.target is None else _target(evidence.target, budget),
        guarded=verdict is not Verdict.NO_EVIDENCE or evidence.target is not None,
    )


def _samples(samples: Array, source: str, budget: int) -> Picture | None:
    count = samples.shape[0]
    if count == 0:
        return None
    shown = "" if count <= MAX_TILES else f" (the first {MAX_TILES} of {count:,})"
    caption = f"From {source}{shown}.{channel_note(samples.shape[1])}"
    alt = f"Grid of {plural(min(count, MAX_TILES), 'sample')} drawn from {source}"
    return picture(samples, alt, caption, budget)


def _target(target: Array, budget: int) -> Picture:
    caption = "What the triggered samples have in common." + channel_note(target.shape[0])
    return picture(target[None], "The recovered target", caption, budget)


def flattened(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """Dotted names and values of a nested dictionary, cut at a length that a page can hold."""
    rows = _leaves(tree, "")
    if len(rows) > _MAX_ROWS:
        rest = len(rows) - _MAX_ROWS
        return [*rows[:_MAX_ROWS], ("...", f"{rest:,} more in the JSON report")]
    return rows


def _leaves(tree: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value and prefix.count(".") < _MAX_DEPTH:
            rows += _leaves(value, f"{prefix}{key}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            rows.append((f"{prefix}{key}", shown))
    return rows
