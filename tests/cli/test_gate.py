"""Exit codes of a gate: levels, baselines, folders of models, runs that go on where another ended."""

from __future__ import annotations

import json
import re
import shutil
from datetime import date, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from backdrift.cli._resume import Kept, settings_of
from backdrift.cli.main import call
from backdrift.core.alerts import alerts, exit_code
from backdrift.core.results import Verdict
from backdrift.core.rules import RULES
from backdrift.core.static import Acceptance, StaticFinding
from backdrift.io.discover import find_checkpoints
from backdrift.io.errors import CheckpointError, NoSuchCheckpoint, NotScannable
from backdrift.report.json import schema
from report.sample import bare_report, calibration, report
from report.test_sarif import SCHEMA as SARIF
from tiny import tiny_checkpoint

SHIPPED = Path(str(resources.files("backdrift").joinpath("models")))
TIMES = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\+00:00|Z| UTC)|(?<=seconds)[\"\s:]*(</dt><dd>)?\s*[\d.]+(e-\d+)?"
)
LATER = str(date.today() + timedelta(days=30))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and the reports of a first scan of both, which the tests take up."""
    root = tmp_path_factory.mktemp("gate")
    shutil.copytree(SHIPPED / "backdoored", root / "models" / "team" / "bad")
    tiny_checkpoint(root / "models" / "good")
    (root / "models" / "README.md").write_text("two models")
    where = ["--format", f"json={root / 'first.json'}", "--evidence", str(root / "evidence")]
    assert call([*arguments(root), "-q", *where]) == 1
    return root


def arguments(root: Path, *more: object) -> list[str]:
    kept = ["--resume", str(root / "kept"), "--budget", "quick"]
    return ["scan", "-r", str(root / "models"), *kept, *map(str, more)]


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


@pytest.mark.slow
def test_the_same_scan_gives_the_same_bytes(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every format, twice, apart from times."""
    names = ("json", "sarif", "markdown", "html", "text")
    found = []
    for run in ("first", "second"):
        monkeypatch.chdir(tiny_checkpoint(tmp_path / run / "model").parent)
        assert cli("scan", "model", "--budget", "quick", *(f"--format={n}={n}" for n in names)).code == 0
        found.append({name: TIMES.sub("", Path(name).read_text()) for name in names})
    assert found[0] == found[1]


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


def test_exit_zero_hides_no_other_code(cli: Any, place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    kept = ["--resume", place / "kept", "--budget", "quick", "--exit-zero", "--format", "json"]
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
    assert cli(*common, "--reason", "second", "--rule", "BD003").code == 0
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
        (["--reason", " ", "--expires", LATER], "--reason"),
        (["--reason", "x", "--expires", "2020-01-01"], "over"),
        (["--reason", "x", "--expires", "soon"], "expected a day"),
        (["--reason", "x", "--expires", LATER, "--rule", "BD002"], "nothing to accept"),
    ],
)
def test_baseline_checks_what_it_is_given(
    cli: Any, place: Path, tmp_path: Path, options: list[str], word: str
) -> None:
    ran = cli("baseline", place / "first.json", "-o", tmp_path / "b.json", *options)
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1)
    assert word in ran.err
    assert not (tmp_path / "b.json").exists()


def test_a_report_is_not_used_when_anything_has_changed(place: Path, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    common = ["scan", str(model), "--budget", "quick", "--detector", "purediffusion", "-q"]
    stored = tmp_path / "kept"
    assert call([*common, "--resume", str(stored)]) == 0
    (file,) = stored.glob("*.json")
    settings = settings_of(json_report(file))
    assert Kept(stored, settings).find(str(model)) is not None
    assert Kept(stored, {**settings, "seeds": {"scan": 1}}).find(str(model)) is None
    assert Kept(stored, {**settings, "version": "0"}).find(str(model)) is None
    assert Kept(stored, settings).find(str(place / "models" / "good")) is None
    config = model / "scheduler" / "scheduler_config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "beta_end": 0.006}))
    assert Kept(stored, settings).find(str(model)) is None
    config.write_text(before)
    assert Kept(stored, settings).find(str(model)) is not None
    (model / "unet" / "extra.bin").write_bytes(b"pickle")
    assert Kept(stored, settings).find(str(model)) is None
    (model / "unet" / "extra.bin").unlink()
    assert Kept(stored, settings).find(str(model)) is not None
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert Kept(stored, settings).find(str(model)) is None
    data[-1] ^= 1
    weights.write_bytes(data)
    assert Kept(stored, settings).find(str(model)) is not None
    (arrays,) = stored.glob("*.npz")
    np.savez(arrays, texts=np.array([{}], dtype=object))
    assert Kept(stored, settings).find(str(model)) is None
    file.write_text("{")
    assert Kept(stored, settings).find(str(model)) is None


def json_report(path: Path) -> Any:
    from backdrift.core.results import Report

    return Report.model_validate_json(path.read_text())


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


def touch(path: Path, text: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_models_below_a_folder(tmp_path: Path) -> None:
    for name in (
        "a/model_index.json", "a/unet/config.json", "org/b/config.json", "org/c/pytorch_model.bin",
        "org/notes/README.md", "README.md", "broken/unet/config.json", "broken/scheduler/x.txt",
    ):  # fmt: skip
        touch(tmp_path / "models" / name)
    touch(tmp_path / "else" / "model_index.json")
    (tmp_path / "models" / "link").symlink_to(tmp_path / "else")
    found = [str(path.relative_to(tmp_path / "models")) for path in find_checkpoints(tmp_path / "models")]
    assert found == ["a", "broken/unet", "link", "org/b", "org/c"]
    assert find_checkpoints(tmp_path / "models" / "a") == [tmp_path / "models" / "a"]
    with pytest.raises(NoSuchCheckpoint):
        find_checkpoints(tmp_path / "nowhere")
    with pytest.raises(NotScannable, match="no folder below it holds a model"):
        find_checkpoints(tmp_path / "models" / "org" / "notes")
    touch(tmp_path / "deep" / "/".join("abcdefghij") / "config.json")
    with pytest.raises(CheckpointError, match="levels"):
        find_checkpoints(tmp_path / "deep")


def test_the_cache_of_the_hub_is_a_folder_of_models(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    touch(cache / "blobs" / "0123")
    touch(cache / "refs" / "main")
    snapshot = cache / "snapshots" / "abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").symlink_to(cache / "blobs" / "0123")
    assert find_checkpoints(tmp_path) == [snapshot]
