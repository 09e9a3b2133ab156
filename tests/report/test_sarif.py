"""SARIF against the OASIS schema, and against what GitHub asks for beyond it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest

from backdrift.core.alerts import alerts
from backdrift.core.results import Failure, Finding, Inspection, Report, ScanDocument, Verdict
from backdrift.core.static import Acceptance, StaticFinding
from backdrift.report.sarif import render_sarif

from .sample import bare_report, calibration, document, report
from .test_report import HOSTILE

SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0" / "schema.json").read_text())
FAILED = Failure(path="models/bad", message="only pickle weights", exit_code=3, rule="BD101")
CODE = StaticFinding.of("BD102", "unet/model.py", "a program; it was not run")
SEEN = Inspection(
    path="models/seen",
    format="DDPMPipeline",
    declared=False,
    weights=[],
    sample_shape=(1, 8, 8),
    static=[CODE],
    not_measured=[],
    exit_code=0,
)


def run_of(whole: ScanDocument) -> dict[str, Any]:
    log = json.loads(render_sarif(whole), parse_constant=pytest.fail)
    jsonschema.Draft4Validator(SCHEMA).validate(log)
    (run,) = log["runs"]
    return dict(run)


def uncalibrated(verdict: Verdict = Verdict.NO_EVIDENCE) -> Report:
    old = report(verdict)
    outside = calibration(in_range=False, out_of_range=["resolution 32x32"])
    findings = [f.model_copy(update={"calibration": outside}) for f in old.findings]
    return old.model_copy(update={"findings": findings, "uncalibrated": True})


@pytest.mark.parametrize(
    ("whole", "rules"),
    [
        (document(report()), ["BD001"]),
        (document(report(Verdict.NO_EVIDENCE)), []),
        (document(uncalibrated()), ["BD003"]),
        (document(uncalibrated(Verdict.BACKDOORED)), ["BD001", "BD003"]),
        (document(bare_report(), report()), ["BD002", "BD003", "BD001"]),
        (document(report(static=[CODE])), ["BD001", "BD102"]),
        (ScanDocument(reports=[], inspections=[SEEN], exit_code=0), ["BD102"]),
        (document(report(), failures=[FAILED]), ["BD001", "BD101"]),
        (ScanDocument(reports=[], failures=[FAILED], exit_code=3), ["BD101"]),
    ],
)
def test_it_follows_the_schema(whole: ScanDocument, rules: list[str]) -> None:
    run = run_of(whole)
    assert [result["ruleId"] for result in run["results"]] == rules
    (invocation,) = run["invocations"]
    assert invocation["exitCode"] == whole.exit_code
    assert invocation["executionSuccessful"] == (not whole.failures)
    told = [n["message"]["text"] for n in invocation["toolExecutionNotifications"]]
    assert told == [f"{f.path} was not scanned: {f.message}" for f in whole.failures]
    assert [model["verdict"] for model in run["properties"]["models"]] == [r.verdict for r in whole.reports]


def test_what_github_asks_for() -> None:
    """Its page "SARIF support for code scanning": required properties and limits."""
    run = run_of(document(uncalibrated(Verdict.BACKDOORED)))
    driver = run["tool"]["driver"]
    assert driver["name"] == "backdrift"
    assert driver["version"] == "0.1.0"
    for rule in driver["rules"]:
        assert len(rule["name"]) <= 255
        for key, limit in (("shortDescription", 1024), ("fullDescription", 1024), ("help", 10_000)):
            assert 0 < len(rule[key]["text"]) <= limit
        assert rule["defaultConfiguration"]["level"] in ("note", "warning", "error")
        assert rule["properties"]["precision"] in ("very-high", "high", "medium", "low")
        assert 0 < float(rule["properties"]["security-severity"]) <= 10
        assert len(rule["properties"]["tags"]) <= 20
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        assert result["partialFingerprints"]["primaryLocationLineHash"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert place["region"]["startLine"] == 1
        uri = place["artifactLocation"]["uri"]
        assert ":" not in uri
        assert not uri.startswith(("/", ".."))
    assert len({r["partialFingerprints"]["primaryLocationLineHash"] for r in run["results"]}) == 2


def moved(old: Report, path: str) -> Report:
    return old.model_copy(update={"subject": old.subject.model_copy(update={"path": path})})


def uris(whole: ScanDocument) -> list[str]:
    return [
        r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run_of(whole)["results"]
    ]


def test_locations_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = "unet/diffusion_pytorch_model.safetensors"
    paths = ["models/a", str(tmp_path / "models" / "a"), "./models/../models/a"]
    assert set(uris(document(*(moved(report(), path) for path in paths)))) == {f"models/a/{weights}"}
    outside = uris(document(moved(report(), "/elsewhere/b")))
    assert outside == [f"b/{weights}"]


def test_a_checkpoint_that_is_one_file_is_its_own_location() -> None:
    old = moved(report(), "models/m.safetensors")
    weights = [old.subject.weights[0].model_copy(update={"file": "m.safetensors"})]
    subject = old.subject.model_copy(update={"weights": weights})
    finding = old.findings[0].model_copy(update={"weights": "m.safetensors"})
    beside = StaticFinding.of("BD105", "config.json", "odd")
    whole = old.model_copy(update={"subject": subject, "findings": [finding], "static": [beside]})
    assert uris(document(whole)) == ["models/m.safetensors", "models/config.json"]
    failure = Failure(path="models/m.safetensors", message="cut short", exit_code=2)
    assert uris(ScanDocument(reports=[], failures=[failure], exit_code=2)) == ["models/m.safetensors"]


def test_the_fingerprint_is_of_rule_and_weights_alone() -> None:
    def prints(one: Report) -> list[str]:
        return [r["partialFingerprints"]["ruleAndWeights/v1"] for r in run_of(document(one))["results"]]

    here = report()
    assert prints(here) == prints(moved(here, "somewhere/else"))
    weights = [w.model_copy(update={"sha256": "00" * 32}) for w in here.subject.weights]
    others = here.model_copy(update={"subject": here.subject.model_copy(update={"weights": weights})})
    assert prints(here) != prints(others)


def test_classes_and_files_have_fingerprints_of_their_own() -> None:
    old = report()
    weights, finding = old.subject.weights[0], old.findings[0]
    names = [f"{weights.file} (class {label})" for label in (0, 1)]
    subject = old.subject.model_copy(
        update={"weights": [weights.model_copy(update={"file": name}) for name in names]}
    )
    findings = [finding.model_copy(update={"weights": name}) for name in names]
    static = [CODE, StaticFinding.of("BD102", "setup.py", "a program")]
    whole = old.model_copy(update={"subject": subject, "findings": findings, "static": static})
    run = run_of(document(whole))
    assert [r["ruleId"] for r in run["results"]] == ["BD001", "BD001", "BD102", "BD102"]
    assert len({r["partialFingerprints"]["ruleAndWeights/v1"] for r in run["results"]}) == 4
    assert uris(document(whole))[1:3] == [f"{old.subject.path}/{f}" for f in (weights.file, CODE.file)]


def test_an_accepted_finding_is_a_suppressed_result() -> None:
    (alert,) = alerts(report())
    item = Acceptance(
        fingerprint=alert.fingerprint, rule=alert.rule, expires=date(2027, 1, 31), reason="a red team's"
    )
    (result,) = run_of(document(report(accepted=[item])))["results"]
    (suppression,) = result["suppressions"]
    assert suppression["status"] == "accepted"
    assert suppression["justification"] == "a red team's"
    assert suppression["properties"] == {"expires": "2027-01-31"}
    assert run_of(document(report()))["results"][0]["suppressions"] == []


def test_hostile_names_and_numbers() -> None:
    name = HOSTILE + "/a b\udcff%2e%2e"
    old = report()
    finding = Finding.model_validate({**dict(old.findings[0]), "score": float("nan"), "reason": HOSTILE})
    text = render_sarif(document(moved(old.model_copy(update={"findings": [finding]}), name)))
    assert text.isascii()
    run = run_of(document(moved(old.model_copy(update={"findings": [finding]}), name)))
    (uri,) = uris(document(moved(old, name)))
    assert unquote(uri).endswith("/a b?%2e%2e/unet/diffusion_pytorch_model.safetensors")
    assert not set(uri) & set(' "<>\u202e\x1b')
    assert "\x1b" not in run["results"][0]["message"]["text"]
    assert "\u202e" not in run["results"][0]["message"]["text"]
    assert run["properties"]["models"][0]["score"] is None
