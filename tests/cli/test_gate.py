"""Exit codes of a gate: levels, baselines, folders of models."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backdrift.cli._resume import Kept, settings_of
from backdrift.cli.main import call
from backdrift.core.results import Verdict
from backdrift.report.json import schema
from backdrift.scanner import scan
from report.sample import evidence, finding
from report.test_sarif import SCHEMA as SARIF
from tiny import tiny_checkpoint

QUICK = ("--budget", "quick", "--detector", "purediffusion", "--in-process")
LATER = str(date.today() + timedelta(days=30))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, the reports that are kept of them, and those of a first run.

    One is scanned; of the other, a report is kept that calls it backdoored.
    """
    root = tmp_path_factory.mktemp("gate")
    (root / "models").mkdir()
    (root / "models" / "README.md").write_text("two models")
    tiny_checkpoint(root / "models" / "good")
    bad = tiny_checkpoint(root / "models" / "team" / "bad", seed=1)
    seen = scan(bad, detector="purediffusion", budget="quick")
    seen.verdict, seen.uncalibrated = Verdict.BACKDOORED, False
    seen.findings, seen.evidence = [finding(seen.verdict)], [evidence(seen.verdict)]
    Kept(root / "kept", settings_of(seen)).keep(seen)
    where = ["--format", f"json={root / 'first.json'}", "--evidence", str(root / "evidence")]
    assert call([*arguments(root), "-q", *where]) == 1
    return root


def arguments(root: Path, *more: object) -> list[str]:
    return ["scan", "-r", str(root / "models"), "--resume", str(root / "kept"), *QUICK, *map(str, more)]


def test_the_second_run_scans_nothing_and_says_the_same(cli: Any, place: Path, tmp_path: Path) -> None:
    ran = cli(*arguments(place, "--format", f"json={tmp_path / 'r.json'}", "--evidence", tmp_path / "e"))
    assert ran.code == 1
    assert ran.err.count("taken from") == 2
    assert (tmp_path / "r.json").read_text() == (place / "first.json").read_text()
    for new in (tmp_path / "e").rglob("*.safetensors"):
        old = place / "evidence" / new.relative_to(tmp_path / "e")
        assert new.read_bytes() == old.read_bytes()
    assert len(list((tmp_path / "e").rglob("triggered_samples.png"))) >= 1


def test_every_format_of_a_real_scan_validates(cli: Any, place: Path, tmp_path: Path) -> None:
    names = ("json", "sarif", "markdown", "html", "text")
    ran = cli(*arguments(place, *(f"--format={name}={tmp_path / name}" for name in names)))
    assert ran.code == 1
    jsonschema.Draft202012Validator(schema()).validate(json.loads((tmp_path / "json").read_text()))
    log = json.loads((tmp_path / "sarif").read_text())
    jsonschema.Draft4Validator(SARIF).validate(log)
    assert [r["ruleId"] for r in log["runs"][0]["results"]] == ["BD003", "BD001"]
    assert "**BACKDOORED**" in (tmp_path / "markdown").read_text()
    assert (tmp_path / "html").read_text().count("<img") >= 8


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 1),
        (["--exit-zero"], 0),
        (["--fail-on", "warning"], 1),
        (["--strict"], 1),
        (["--strict", "--exit-zero"], 2),
    ],
)
def test_options_that_move_the_exit_code(cli: Any, place: Path, options: list[str], code: int) -> None:
    ran = cli(*arguments(place, "--format", "json", *options))
    assert (ran.code, ran.document["exit_code"]) == (code, code)


def test_a_failure_beside_a_verdict(cli: Any, place: Path, tmp_path: Path) -> None:
    """NO EVIDENCE and nothing to scan is a 3: exit 0 would hide that one was not looked at."""
    empty, page = tmp_path / "empty", tmp_path / "r.html"
    empty.mkdir()
    kept = ["--resume", place / "kept", *QUICK, "--format", "text", "--format", f"html={page}"]
    ran = cli("scan", empty, place / "models" / "good", *kept)
    assert ran.code == 3
    assert "NO EVIDENCE" in ran.out
    assert f"NOT SCANNED  {empty}" in ran.out
    assert f"backdrift: {empty}: the folder is empty" in ran.err
    assert str(empty) in page.read_text()


def test_exit_zero_hides_no_other_code(cli: Any, place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    kept = ["--resume", place / "kept", *QUICK, "--exit-zero", "--format", "json"]
    ran = cli("scan", place / "models" / "team" / "bad", tmp_path / "empty", *kept)
    assert (ran.code, ran.document["exit_code"]) == (3, 3)
    assert ran.document["reports"][0]["exit_code"] == 1


def test_a_baseline_from_report_to_expiry(cli: Any, place: Path, tmp_path: Path) -> None:
    accepted = tmp_path / "accepted.json"
    ran = cli(
        "baseline", place / "first.json", "-o", accepted, "--reason", "our own red team", "--expires", LATER
    )
    assert (ran.code, ran.err) == (0, "")
    (entry,) = json.loads(accepted.read_text())["accepted"]
    assert (entry["rule"], entry["expires"]) == ("BD001", LATER)

    ran = cli(*arguments(place, "--baseline", accepted, "--format", "json"))
    assert ran.code == 0
    bad = next(r for r in ran.document["reports"] if r["verdict"] == "BACKDOORED")
    assert bad["exit_code"] == 0
    assert bad["accepted"][0]["reason"] == "our own red team"
    text = cli(*arguments(place, "--baseline", accepted, "-q", "--format", f"text={tmp_path / 't'}"))
    assert text.code == 0
    assert "our own red team" in " ".join((tmp_path / "t").read_text().split())

    old = {**entry, "expires": "2026-01-01"}
    accepted.write_text(json.dumps({"accepted": [entry, old]}))
    assert cli(*arguments(place, "--baseline", accepted, "-q")).code == 0, "the later day counts"
    other = {**entry, "fingerprint": "0" * 64, "model": "gone"}
    accepted.write_text(json.dumps({"accepted": [old, other]}))
    ran = cli(*arguments(place, "--baseline", accepted, "--format", "json"))
    assert ran.code == 1
    assert [" expired on 2026-01-01" in n for n in ran.document["notices"]] == [True, False]
    assert "nothing here matches BD001 of gone" in ran.document["notices"][1]
    for notice in ran.document["notices"]:
        assert notice in ran.err


def test_a_baseline_grows(cli: Any, place: Path, tmp_path: Path) -> None:
    accepted = tmp_path / "accepted.json"
    common = ["baseline", place / "first.json", "-o", accepted, "--expires", LATER]
    assert cli(*common, "--reason", "first").code == 0
    assert cli(*common, "--reason", "second", "--rule", "uncalibrated").code == 0
    entries = json.loads(accepted.read_text())["accepted"]
    assert sorted((e["rule"], e["reason"]) for e in entries) == [("BD001", "first"), ("BD003", "second")]
    ran = cli(*arguments(place, "--baseline", accepted, "--strict"))
    assert ran.code == 0, "an accepted lack of calibration is one that --strict leaves alone"


def entry(**changes: Any) -> str:
    whole = {"fingerprint": "a" * 64, "rule": "BD001", "expires": "2027-01-31", "reason": "x", **changes}
    return json.dumps({"accepted": [{k: v for k, v in whole.items() if v is not None}]})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "Invalid JSON"),
        ('{"accepted": [], "ignore": 1}', "ignore"),
        ('{"accepted": [{}]}', "accepted.0.fingerprint"),
        (entry(fingerprint="all"), "accepted.0.fingerprint"),
        (entry(reason=None), "accepted.0.reason"),
        (entry(reason=" . "), "say why"),
        (entry(expires=None), "accepted.0.expires"),
        (entry(expires="never"), "accepted.0.expires"),
        (entry(rule="BD999"), "no such rule"),
    ],
)
def test_a_bad_baseline_is_a_usage_error(
    cli: Any, place: Path, tmp_path: Path, text: str, word: str
) -> None:
    (tmp_path / "b.json").write_text(text)
    ran = cli(*arguments(place, "--baseline", tmp_path / "b.json"))
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1)
    assert word in ran.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--reason", " .", "--expires", LATER], "reason ' .': say why"),
        (["--reason", "x", "--expires", "2020-01-01"], "over"),
        (["--reason", "x", "--expires", "soon"], "expected a day"),
        (["--reason", "x", "--expires", LATER, "--rule", "BD002"], "nothing to accept"),
        (["--reason", "x", "--expires", LATER, "--rule", "backdored"], "did you mean BD001"),
    ],
)
def test_baseline_checks_what_it_is_given(
    cli: Any, place: Path, tmp_path: Path, options: list[str], word: str
) -> None:
    ran = cli("baseline", place / "first.json", "-o", tmp_path / "b.json", *options)
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1)
    assert word in ran.err
    assert not (tmp_path / "b.json").exists()
