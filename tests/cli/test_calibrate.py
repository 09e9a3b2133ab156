"""``backdrift calibrate``: a threshold from a user's own models, and what the scan makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from backdrift.cli.main import call
from backdrift.detection import terd
from backdrift.detection._calibration import CalibrationTable
from tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clean models, and one that says that it is backdoored."""
    folder = tmp_path_factory.mktemp("population")
    for seed in range(4):
        tiny_checkpoint(folder / f"model-{seed}", seed=seed)
    (folder / "model-3" / "backdoor.json").write_text("{}")
    (folder / "notes").mkdir()
    return folder


@pytest.fixture(scope="module")
def calibrated(population: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of thresholds, its cells beside it."""
    file = tmp_path_factory.mktemp("calibrated") / "own.json"
    assert call([*map(str, command(population, file)), "-q"]) == 0
    return file


def command(models: Path, output: Path) -> tuple[object, ...]:
    return (
        "calibrate",
        "--models",
        models,
        "--detector",
        "purediffusion",
        "--budget",
        "quick",
        "-o",
        output,
    )


def test_a_scan_becomes_calibrated(
    cli: Any, population: Path, calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = CalibrationTable.read(calibrated)
    entry = table.detectors["purediffusion"]["quick"]
    assert [row.model for row in entry.clean] == ["model-0", "model-1", "model-2"]
    assert [row.model for row in entry.backdoored] == ["model-3"]
    assert entry.threshold == max(0.5, max(row.score for row in entry.clean) + 0.1)

    monkeypatch.chdir(calibrated.parent)  # a relative path holds in the process of its own, too
    model, own = population / "model-0", ("-P", "calibration=own.json")
    ran = cli("detect", "purediffusion", model, "--budget", "quick", *own, isolated=True)
    (report,) = ran.document["reports"]
    assert report["uncalibrated"] is False
    assert report["config"]["calibration"].startswith("own.json, sha256 ")
    assert report["findings"][0]["calibration"]["id"] == table.id
    assert report["findings"][0]["calibration"]["n_clean"] == 3


def test_what_is_there_is_not_scored_again(cli: Any, population: Path, calibrated: Path) -> None:
    first = calibrated.read_bytes()
    ran = cli(*command(population, calibrated))
    assert (ran.code, calibrated.read_bytes()) == (0, first), ran.err
    assert "0 of 3 clean" in ran.out
    assert sorted(path.name for path in calibrated.parent.iterdir()) == ["own.json", "own.json.cells"]


def test_features_are_scored_against_the_other_clean_models(
    cli: Any, population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(terd.DESCENTS, "quick", (3, 2))
    file = tmp_path / "own.json"
    ran = cli("calibrate", "--models", population, "--detector", "terd", "--budget", "quick", "-o", file)
    assert ran.code == 0, ran.err
    entry = CalibrationTable.read(file).detectors["terd"]["quick"]
    assert all(set(row.features or {}) >= {"M", "V"} for row in entry.clean + entry.backdoored)
    judged = cli("detect", "terd", population / "model-3", "--budget", "quick", "-P", f"calibration={file}")
    finding = judged.document["reports"][0]["findings"][0]
    assert finding["verdict"] in ("BACKDOORED", "NO EVIDENCE")


def test_a_changed_model_is_scored_again(
    cli: Any, population: Path, calibrated: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(population, tmp_path / "own")
    shutil.copytree(calibrated.parent, tmp_path / "made")
    shutil.rmtree(own / "model-1")
    tiny_checkpoint(own / "model-1", seed=9)
    ran = cli(*command(own, tmp_path / "made" / "own.json"))
    assert ran.code == 4
    assert "other settings" in ran.err


@pytest.mark.parametrize("what", ["nothing", "no clean model", "no folder"])
def test_what_cannot_be_calibrated_on(cli: Any, population: Path, tmp_path: Path, what: str) -> None:
    models = tmp_path / "models"
    if what != "nothing":
        models.mkdir()
    if what == "no clean model":
        shutil.copytree(population / "model-3", models / "bad")
    output = tmp_path / "deep" / "own.json" if what == "no folder" else tmp_path / "own.json"
    ran = cli("calibrate", "--models", models, "--budget", "quick", "-o", output)
    assert ran.code == 4
    assert len(ran.err.strip().splitlines()) == 1
    assert not output.exists()
