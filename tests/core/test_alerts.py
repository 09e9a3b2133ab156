"""From findings to the exit code of a report."""

from __future__ import annotations

from datetime import date

import pytest

from backdrift.core.alerts import alerts, exit_code, worst
from backdrift.core.results import Verdict
from backdrift.core.rules import RULES
from backdrift.core.static import Acceptance, StaticFinding
from report.sample import bare_report, calibration, report


def test_the_exit_code_of_a_report() -> None:
    """Every verdict, calibrated or not, at every level, strict or not, against the table in the guide."""
    outside = calibration(in_range=False)
    for verdict, base in ((Verdict.BACKDOORED, 1), (Verdict.NO_EVIDENCE, 0), (Verdict.INCONCLUSIVE, 2)):
        one = report(verdict)
        findings = [f.model_copy(update={"calibration": outside}) for f in one.findings]
        unlike = one.model_copy(update={"findings": findings, "uncalibrated": True})
        for level in ("error", "warning", "note"):
            assert exit_code(one, fail_on=level) == exit_code(one, fail_on=level, strict=True) == base
            loud = 1 if level == "note" else base
            assert exit_code(unlike, fail_on=level) == loud
            assert exit_code(unlike, fail_on=level, strict=True) == (base or 2)


@pytest.mark.parametrize(
    ("rule", "default", "warning"), [("BD105", 1, 1), ("BD102", 0, 1), ("BD401", 2, 2), ("BD403", 0, 0)]
)
def test_what_the_files_show_counts(rule: str, default: int, warning: int) -> None:
    """A file that is not what it says is a finding; damaged weights are an answer that is missing."""
    one = report(Verdict.NO_EVIDENCE, static=[StaticFinding.of(rule, "a file", "odd")])
    assert (exit_code(one), exit_code(one, fail_on="warning")) == (default, warning)
    bad = report(static=[StaticFinding.of(rule, "a file", "odd")])
    assert exit_code(bad) == 1


def test_without_any_level_the_reasons_for_a_2_show() -> None:
    """What ``--exit-zero`` leaves: it hides a backdoor, and not the damaged weights beside it."""
    damaged = [StaticFinding.of("BD401", "a file", "odd")]
    for verdict, static, code in (
        (Verdict.BACKDOORED, [], 0),
        (Verdict.BACKDOORED, damaged, 2),
        (Verdict.INCONCLUSIVE, [], 2),
        (Verdict.NO_EVIDENCE, [], 0),
    ):
        assert exit_code(report(verdict, static=static), fail_on=None) == code


def test_a_partial_report_is_never_a_0() -> None:
    for level in ("error", "warning", "note", None):
        for verdict, code in ((Verdict.NO_EVIDENCE, 2), (Verdict.INCONCLUSIVE, 2), (Verdict.BACKDOORED, 1)):
            wanted = 2 if level is None else code
            assert exit_code(report(verdict, partial=True), fail_on=level) == wanted
    assert worst([], partial=True) is worst([Verdict.NO_EVIDENCE] * 2, partial=True) is Verdict.INCONCLUSIVE
    assert worst(list(Verdict), partial=True) is Verdict.BACKDOORED
    assert worst([Verdict.NO_EVIDENCE], partial=False) is Verdict.NO_EVIDENCE


def test_accepting_one_finding_accepts_no_other() -> None:
    one = bare_report()
    first, second = alerts(one)
    assert (first.rule, second.rule) == ("BD002", "BD003")
    one.accepted.append(
        Acceptance(fingerprint=first.fingerprint, rule=first.rule, expires=date.today(), reason="known")
    )
    assert exit_code(one) == 0
    assert exit_code(one, strict=True) == 2
    assert exit_code(one, fail_on="note") == 1
    assert RULES[second.rule].level == "note"
