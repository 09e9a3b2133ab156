"""The commands on variance exploding models: train, attack, sample, evaluate, scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import ScoreSdeVePipeline

from backdrift.bench import _planting
from backdrift.groundtruth import load_backdoor

SMALL = ("--size", "8", "--width", "8", "--steps", "2", "--rows", "4", "--schedule", "ve")


@pytest.fixture
def attacked(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_planting, "SAMPLES", 20)
    monkeypatch.setattr(_planting, "STEPS", 3)
    folder, options = tmp_path / "attacked", ("-P", "psi=0", "--trigger", "white-box-14", *SMALL)
    ran = cli("attack", "villandiffusion", "-o", folder, *options)
    assert ran.code == 0, ran.err
    assert "score-sde-ve, 3 steps" in ran.out
    return folder


def test_an_attacked_model_is_a_stock_pipeline_that_says_what_it_is(attacked: Path) -> None:
    pipeline = ScoreSdeVePipeline.from_pretrained(attacked)
    assert pipeline.scheduler.config.sigma_max == 7.2
    assert pipeline.unet.config.time_embedding_type == "fourier"
    planted = load_backdoor(attacked)
    assert set(planted.shift.unique().tolist()) == {0.0, 1.0}  # white on black in images of [0, 1]
    assert not planted.record.composite
    assert (attacked / "BACKDOORED.md").exists()


def test_it_is_sampled_and_measured_by_the_stock_sampler(cli: Any, attacked: Path, tmp_path: Path) -> None:
    ran = cli("sample", attacked, "-o", tmp_path / "x.png", "-n", 2, "--steps", 3)
    assert "2 samples, score-sde-ve, 3 steps" in ran.out, ran.err
    ran = cli("evaluate", attacked, "-n", 20, "--steps", 2, "-q", "-o", tmp_path / "e.json")
    assert ran.code == 0, ran.err
    measures = json.loads((tmp_path / "e.json").read_text())["measures"]
    assert {row["sampler"] for row in measures} == {"score-sde-ve"}
    ran = cli("sample", attacked, "-o", tmp_path / "y.png", "-n", 2, "--steps", 1)
    assert (ran.code, ran.err.count("\n")) == (4, 1)
    assert "2..1000" in ran.err


def test_it_is_scanned_without_a_calibration(cli: Any, attacked: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    ran = cli("scan", attacked, "--budget", "quick", "-q", "--format", "json", "-o", out)
    assert ran.code in (0, 2), ran.err  # untrained: it draws nothing, or nothing with a trigger
    report = json.loads(out.read_text())["reports"][0]
    assert report["subject"]["format"] == "ScoreSdeVePipeline"
    assert report["subject"]["prediction_type"] == "score"
    assert report["subject"]["schedule"]["sigma_max"] == 7.2
    assert report["uncalibrated"]


def test_another_path_is_refused_in_one_line(cli: Any, tmp_path: Path) -> None:
    ran = cli("attack", "villandiffusion", "-o", tmp_path / "no", *SMALL)
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1)
    assert "give -P psi=0" in ran.err
    assert not (tmp_path / "no").exists()
