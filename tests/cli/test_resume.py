"""``--resume``: when a report that was kept is used again, and when not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from backdrift.cli._resume import Kept, settings_of
from backdrift.core.results import Evidence, Report
from backdrift.io.weights import Bounds
from backdrift.scanner import scan
from tiny import tiny_checkpoint

QUICK = ("--budget", "quick", "--detector", "purediffusion")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    model = tiny_checkpoint(tmp_path_factory.mktemp("resume") / "model")
    return model, scan(model, detector="purediffusion", budget="quick")


@pytest.fixture
def report(scanned: tuple[Path, Report], tmp_path: Path) -> Report:
    """The report of a checkpoint that a test may change."""
    model, report = scanned
    there = shutil.copytree(model, tmp_path / "model")
    subject = report.subject.model_copy(update={"path": str(there)})
    return report.model_copy(update={"subject": subject})


def test_a_report_is_not_used_when_anything_has_changed(report: Report, tmp_path: Path) -> None:
    model, stored, settings = Path(report.subject.path), tmp_path / "kept", settings_of(report)
    Kept(stored, settings).keep(report)

    def found(path: Path = model, **changes: Any) -> Report | None:
        return Kept(stored, {**settings, **changes}).find(str(path))

    assert found() is not None
    assert found(seeds={"scan": 1}) is None
    assert found(version="0") is None
    assert found(tmp_path / "another") is None
    assert Kept(stored, settings, bounds=Bounds(parameters=1)).find(str(model)) is None
    config = model / "scheduler" / "scheduler_config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "beta_end": 0.006}))
    assert found() is None
    config.write_text(before)
    (model / "unet" / "extra.bin").write_bytes(b"pickle")
    assert found() is None
    (model / "unet" / "extra.bin").unlink()
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert found() is None
    data[-1] ^= 1
    weights.write_bytes(data)
    assert found() is not None


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "other"])
def test_a_damaged_report_is_scanned_again(report: Report, tmp_path: Path, damage: str) -> None:
    kept = Kept(tmp_path / "kept", settings_of(report))
    kept.keep(report)
    (file,) = kept.folder.iterdir()
    data = file.read_bytes()
    spoiled = {"empty": b"", "cut": data[:-1], "longer": data + b"x", "other": b"PK" + data}
    file.write_bytes(spoiled[damage])
    assert kept.find(report.subject.path) is None


def test_all_of_a_report_comes_back(report: Report, tmp_path: Path) -> None:
    """Numbers that are not finite among it, which JSON files have no word for."""
    scores = [score.model_copy(update={"value": math.nan}) for score in report.findings[0].scores]
    report.findings = [report.findings[0].model_copy(update={"scores": scores})]
    kept = Kept(tmp_path / "kept", settings_of(report))
    kept.keep(report)
    again = kept.find(report.subject.path)
    assert again is not None
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(report.model_dump(mode="json"))
    assert len(again.evidence) == len(report.evidence) > 0
    for new, old in zip(again.evidence, report.evidence, strict=True):
        assert isinstance(new, Evidence)
        assert new.trigger.tobytes() == old.trigger.tobytes()
        assert new.clean_samples.tobytes() == old.clean_samples.tobytes()


def test_the_name_of_a_folder_is_no_command_to_a_terminal(cli: Any, report: Report, tmp_path: Path) -> None:
    model = Path(report.subject.path).rename(tmp_path / "a\x1b[2Jb")
    report.subject = report.subject.model_copy(update={"path": str(model)})
    Kept(tmp_path / "kept", settings_of(report)).keep(report)
    for options in (["--resume", tmp_path / "kept"], ["--dry-run"], ["--static-only"]):
        ran = cli("scan", "-r", tmp_path, *QUICK, *options)
        assert ran.code == 0, ran.err
        assert "a\\x1b[2Jb" in ran.out + ran.err
        assert "\x1b" not in ran.out + ran.err


def test_it_is_the_model_of_this_run_that_is_read_again(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that was given relative to another folder, in which a copy of the old model lies by now."""
    monkeypatch.chdir(tmp_path)
    report.subject = report.subject.model_copy(update={"path": "model"})
    kept = Kept(tmp_path / "kept", settings_of(report))
    kept.keep(report)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree("model", elsewhere / "model")
    monkeypatch.chdir(elsewhere)
    again = kept.find(str(tmp_path / "model"))
    assert again is not None
    assert again.subject.path == str(tmp_path / "model")
    tiny_checkpoint(tmp_path / "model", seed=5)
    assert kept.find(str(tmp_path / "model")) is None
