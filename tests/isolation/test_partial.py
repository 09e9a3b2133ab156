"""A scan that is ended before its time: an error, beside which stands what was found up to then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backdrift
from backdrift.cli._gate import Gate
from backdrift.cli.main import call
from backdrift.core.results import Failure, Report, Verdict
from backdrift.io.errors import CheckpointError
from backdrift.isolation import parent, process, wire
from backdrift.isolation.limits import Limits
from backdrift.isolation.parent import ScanStopped
from backdrift.report.formats import FORMATS
from report import sample
from tiny import tiny_checkpoint

QUICK: dict[str, Any] = {"budget": "quick", "detector": "purediffusion"}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("partial") / "model")
    (folder / "notes.pkl").write_bytes(b"\x80\x04N.")
    return folder


class Hurried(process.Run):
    """Its time is over as soon as the first null has been drawn."""

    def _show(self, payload: bytes) -> None:
        if wire.read_progress(payload)[2].startswith("null"):
            self.end = 0.0


DYING = """
import json, os, sys
job = json.loads(sys.stdin.buffer.readline())
sys.path[:] = job["sys_path"]
from backdrift.detection._trial import Trial
hold = Trial.hold.__func__
def held(cls, *rest):
    def told(trial):
        rest[-1](trial)
        os.abort()
    return hold(cls, *rest[:-1], told)
Trial.hold = classmethod(held)
from backdrift.isolation.child import main
main(job)
"""
"""A child that dies when its best trigger has been drawn with."""


def stopped(model: Path) -> ScanStopped:
    with pytest.raises(ScanStopped) as caught:
        backdrift.scan_isolated(model, **QUICK)
    return caught.value


def check_judged(report: Report) -> None:
    """What a scan knows when it has drawn with its best trigger."""
    assert (report.partial, report.verdict, report.exit_code) == (True, Verdict.INCONCLUSIVE, 2)
    assert report.stages[:4] == [
        "files, configs and headers",
        *(f"{WEIGHTS}: {stage}" for stage in ("loading", "inversion", "screening")),
    ]
    assert f"{WEIGHTS}: samples on fresh seeds" in report.stages
    assert f"{WEIGHTS}: verdict" not in report.stages
    assert [finding.rule for finding in report.static] == ["BD101"]
    (finding,), (evidence,) = report.findings, report.evidence
    rates = {score.name: score.value for score in finding.scores}
    assert finding.score is None
    assert all(0 <= (rates[name] or 0) <= 1 for name in ("hit rate", "hit rate without trigger"))
    assert f"{rates['hit rate']:.0%} of fresh samples" in finding.reason
    assert np.linalg.norm(evidence.trigger) == pytest.approx(rates["trigger norm"], rel=1e-4)
    assert len(evidence.clean_samples) == len(evidence.triggered_samples) > 0
    assert report.measured == []
    assert any("ended before its time" in item.why for item in report.not_measured)


def test_a_scan_that_dies_leaves_what_it_had(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BOOT", DYING)
    error = stopped(model)
    assert (error.rule, error.exit_code) == ("BD008", 2)
    assert "SIGABRT" in str(error)
    assert str(error) in error.partial.advice
    check_judged(error.partial)
    assert error.partial.limits


def test_a_timeout_is_in_every_format_and_in_the_evidence(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parent, "Run", Hurried)
    places = [f"--format={name}={tmp_path / name}" for name in FORMATS]
    words = ["scan", str(model), "--budget", "quick", "--detector", "purediffusion", *places]
    kept, found = tmp_path / "kept", tmp_path / "evidence"
    assert call([*words, "--evidence", str(found), "--resume", str(kept), "--exit-zero"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("backdrift: ")) == ("", 1)
    assert "took longer" in err
    assert list(kept.iterdir()) == [], "a partial report is none to use again"

    document = json.loads((tmp_path / "json").read_text())
    assert (document["reports"], document["exit_code"]) == ([], 2)
    (failure,) = document["failures"]
    assert (failure["rule"], failure["exit_code"]) == ("BD006", 2)
    assert Verdict(failure["partial"]["verdict"]) is Verdict.INCONCLUSIVE
    reason = failure["partial"]["findings"][0]["reason"]

    log = json.loads((tmp_path / "sarif").read_text())["runs"][0]
    assert not log["invocations"][0]["executionSuccessful"]
    assert {"BD002", "BD006", "BD101"} <= {result["ruleId"] for result in log["results"]}
    assert log["properties"]["models"][0]["partial"] is True
    for name in ("text", "markdown", "html"):
        shown = " ".join((tmp_path / name).read_text().replace("&#37;", "%").replace("&#59;", ";").split())
        assert "NOT FINISHED" in shown or name == "html"
        assert "partial" in shown
        assert "INCONCLUSIVE" in shown
        assert "NO EVIDENCE" not in shown.replace("NO EVIDENCE is not a certificate", "")
        assert reason.split(";")[0].split(":")[1].strip() in shown
    index = json.loads((found / "evidence.json").read_text())
    assert index["partial"] is True
    assert (found / "evidence-1" / "trigger.safetensors").stat().st_size > 0
    assert (found / "evidence-1" / "triggered_samples.png").exists()


def forged(**changes: Any) -> bytes:
    small = sample.evidence(Verdict.NO_EVIDENCE, size=8, count=2)
    report = sample.report(Verdict.NO_EVIDENCE, partial=True, evidence=[small])
    report.findings[0] = report.findings[0].model_copy(
        update={"curves": [], "reason": "all is well\x1b[2J"}
    )
    for name, value in changes.items():
        setattr(report, name, value)
    return wire.partial_frame(report)


@pytest.mark.parametrize("changes", [{}, {"partial": False, "exit_code": 0}])
@pytest.mark.parametrize("rule", ["BD005", "BD007", None])
def test_what_a_process_says_before_it_fails_is_never_no_evidence(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], rule: str | None
) -> None:
    failure = wire.frame(wire.FAILURE, wire.to_json({"message": "m", "exit_code": 2, "rule": rule}))
    says = forged(**changes) + (failure if rule else b"")
    boot = f"import os, sys; sys.stdin.buffer.readline(); os.write(1, {says!r}); sys.exit(3)"
    monkeypatch.setattr(process, "_BOOT", boot)
    error = stopped(Path("somewhere"))
    partial = error.partial
    assert error.rule == (rule or "BD008")
    assert (partial.verdict, partial.exit_code, partial.partial) == (Verdict.INCONCLUSIVE, 2, True)
    assert partial.subject.path == "somewhere"
    assert partial.findings[0].reason == r"all is well\x1b[2J"
    assert str(error) in partial.advice


def test_a_refusal_has_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = {"message": "m", "exit_code": 2, "rule": "BD401"}
    says = forged() + wire.frame(wire.FAILURE, wire.to_json(failure))
    boot = f"import os, sys; sys.stdin.buffer.readline(); os.write(1, {says!r})"
    monkeypatch.setattr(process, "_BOOT", boot)
    with pytest.raises(CheckpointError) as caught:
        backdrift.scan_isolated("somewhere")
    assert not isinstance(caught.value, ScanStopped)


@pytest.mark.parametrize(
    "says",
    [
        wire.frame(wire.PARTIAL, b"{}"),
        wire.frame(wire.PARTIAL, wire.frame(wire.REPORT, b"{}")),
        wire.frame(wire.PARTIAL, wire.frame(wire.DONE, b"null")),
        wire.frame(wire.PARTIAL, b""),
        forged()[:-1],
        wire.PARTIAL + ((1 << 26) + 1).to_bytes(8, "little"),
    ],
)
def test_what_is_no_partial_report_is_left_out(monkeypatch: pytest.MonkeyPatch, says: bytes) -> None:
    code = f"import os, sys; sys.stdin.buffer.readline(); os.write(1, {says!r}); sys.exit(3)"
    monkeypatch.setattr(process, "_BOOT", code)
    with pytest.raises(CheckpointError) as caught:
        backdrift.scan_isolated("somewhere", limits=Limits(seconds=60))
    assert not isinstance(caught.value, ScanStopped)
    assert caught.value.rule == "BD008"


def test_a_partial_report_is_none_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    says = bytearray()
    wire.send_report(sample.report(Verdict.NO_EVIDENCE, partial=True, evidence=[]), says.extend)
    says += wire.frame(wire.DONE, b"null")
    code = f"import os, sys; sys.stdin.buffer.readline(); os.write(1, {bytes(says)!r})"
    monkeypatch.setattr(process, "_BOOT", code)
    with pytest.raises(CheckpointError, match="no valid report"):
        backdrift.scan_isolated("somewhere")


def test_samples_are_left_out_of_a_frame_that_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    report = sample.report()
    (whole,) = wire.frames(bytearray(wire.partial_frame(report)))
    monkeypatch.setitem(wire._MOST, wire.PARTIAL, len(whole[1]) - 1)
    ((_, data),) = wire.frames(bytearray(wire.partial_frame(report)))
    (piece,) = wire.read_stored(data).evidence
    assert np.array_equal(piece.trigger, report.evidence[0].trigger)
    assert (len(piece.clean_samples), len(piece.triggered_samples)) == (0, 0)


def test_every_report_on_the_way_is_partial(model: Path, tmp_path: Path) -> None:
    """Weights that are through keep their finding."""
    two = Path(shutil.copytree(model, tmp_path / "two"))
    shutil.copytree(tiny_checkpoint(tmp_path / "other", seed=1) / "unet", two / "unet_ema")
    told: list[Report] = []
    whole = backdrift.scan(two, **QUICK, keep=told.append)
    assert not whole.partial
    assert whole.stages == told[-1].stages
    assert all((one.partial, one.verdict, one.exit_code) == (True, "INCONCLUSIVE", 2) for one in told)
    first, second = (finding.weights for finding in whole.findings)
    assert [w.file for w in whole.subject.weights] == [first, second]
    on_the_way = next(one for one in told if one.stages[-1] == f"{second}: screening")
    assert on_the_way.findings[0] == whole.findings[0]
    assert [f.verdict for f in on_the_way.findings][1:] == ["INCONCLUSIVE"]
    assert on_the_way.measured == whole.measured[:1]


def test_a_backdoor_in_weights_that_were_through_counts() -> None:
    """Beside it stands the error: ``--exit-zero`` hides the backdoor and not that."""
    for options, code in (({}, 1), ({"exit_zero": True}, 2)):
        gate = Gate(**options)
        partial = sample.report(Verdict.BACKDOORED, partial=True)
        gate.judge(Failure(path="x", message="m", exit_code=2, rule="BD006", partial=partial))
        assert gate.close(quiet=True).exit_code == code
        assert partial.exit_code == 1
