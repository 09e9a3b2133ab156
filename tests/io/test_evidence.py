from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from backdrift.core.results import (
    Cost,
    Environment,
    Evidence,
    Finding,
    Report,
    Subject,
    Verdict,
)
from backdrift.io.errors import CheckpointError, NoSuchCheckpoint
from backdrift.io.evidence import load_evidence, save_candidates, save_evidence, save_images


def make_report(*evidence: Evidence) -> Report:
    return Report(
        version="0",
        started="",
        finished="",
        command="",
        subject=Subject(
            path="x",
            format="DDPMPipeline",
            declared=False,
            weights=[],
            sample_shape=(3, 4, 4),
            prediction_type="epsilon",
            schedule={},
            network={},
        ),
        verdict=Verdict.BACKDOORED,
        exit_code=1,
        uncalibrated=False,
        advice="",
        findings=[
            Finding(
                detector="d",
                weights=name,
                verdict=Verdict.BACKDOORED,
                score=1.0,
                threshold=0.5,
                reason="r",
            )
            for name in ("a", "b")
        ],
        measured=[],
        not_measured=[],
        config={},
        seeds={},
        environment=Environment(python="", platform="", device="", threads=1, versions={}),
        cost=Cost(evaluations=0, evaluations_limit=0, seconds=0),
        evidence=list(evidence),
    )


def make_evidence(weights: str = "a", *, target: bool = True) -> Evidence:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return Evidence(
        weights=weights,
        trigger=draw(3, 4, 4),
        target=draw(3, 4, 4) if target else None,
        clean_samples=draw(5, 3, 4, 4),
        triggered_samples=draw(5, 3, 4, 4) if target else np.zeros((0, 3, 4, 4), np.float32),
        sampler="ddpm, 50 steps",
    )


def test_round_trip(tmp_path: Path) -> None:
    first, second = make_evidence("a"), make_evidence("b", target=False)
    folder = save_evidence(make_report(first, second), tmp_path / "out")
    items = load_evidence(folder)["evidence"]
    np.testing.assert_array_equal(items[0]["trigger"], first.trigger)
    np.testing.assert_array_equal(items[0]["target"], first.target)
    assert items[1]["target"] is None
    assert [finding["weights"] for item in items for finding in item["findings"]] == ["a", "b"]
    assert items[0]["sampler"] == "ddpm, 50 steps"
    assert sorted(items[0]["sha256"]) == [
        "clean_samples.png",
        "target.png",
        "target.safetensors",
        "trigger.png",
        "trigger.safetensors",
        "triggered_samples.png",
    ]
    for name, digest in items[0]["sha256"].items():
        data = (folder / "evidence-1" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest


def test_a_scale_goes_with_its_trigger(tmp_path: Path) -> None:
    scale = np.full((3, 4, 4), 0.6, np.float32)
    plain, scaled = make_evidence("a"), replace(make_evidence("b"), scale=scale)
    items = load_evidence(save_evidence(make_report(plain, scaled), tmp_path / "out"))["evidence"]
    assert items[0]["scale"] is None
    np.testing.assert_array_equal(items[1]["scale"], scale)
    assert "scale.safetensors" in items[1]["sha256"]
    shifts, nothing = [plain.trigger, scaled.trigger], [None, None]
    folder = save_candidates(shifts, nothing, [{}, {}], {}, tmp_path / "found", [None, scale])
    assert not (folder / "candidate-1" / "scale.safetensors").exists()
    np.testing.assert_array_equal(load_file(folder / "candidate-2" / "scale.safetensors")["scale"], scale)


def test_replaces_evidence_and_nothing_else(tmp_path: Path) -> None:
    save_evidence(make_report(make_evidence()), tmp_path / "out")
    save_evidence(make_report(), tmp_path / "out")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["evidence.json"]
    assert load_evidence(tmp_path / "out")["evidence"] == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="refusing"):
        save_evidence(make_report(), tmp_path / "mine")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mine", "out"]


def test_changed_or_missing_evidence(tmp_path: Path) -> None:
    with pytest.raises(NoSuchCheckpoint, match=r"evidence\.json"):
        load_evidence(tmp_path)
    folder = save_evidence(make_report(make_evidence()), tmp_path / "out")
    trigger = folder / "evidence-1" / "trigger.safetensors"
    data = bytearray(trigger.read_bytes())
    data[-1] ^= 1
    trigger.write_bytes(data)
    with pytest.raises(CheckpointError, match="not what the scan wrote"):
        load_evidence(folder)
    trigger.unlink()
    with pytest.raises(CheckpointError, match="cannot open"):
        load_evidence(folder)
    for document in ({}, {"evidence": [1]}, {"evidence": 3}, {"evidence": [{"sha256": []}]}):
        (folder / "evidence.json").write_text(json.dumps(document))
        with pytest.raises(CheckpointError):
            load_evidence(folder)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_images(tmp_path: Path, channels: int, mode: str) -> None:
    images = torch.linspace(-1, 1, 5 * channels * 4 * 6).reshape(5, channels, 4, 6)
    save_images(images, tmp_path / "deep" / "x.png")
    with Image.open(tmp_path / "deep" / "x.png") as picture:
        pixels = np.asarray(picture)
        assert (picture.mode, picture.size) == (mode, (3 * 7 - 1, 2 * 5 - 1))
    first = pixels[:4, :6] if mode == "L" else pixels[:4, :6, 0]
    np.testing.assert_array_equal(first, ((images[0, 0] + 1) * 127.5).round())
    assert not pixels[5:, 14:].any()
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["x.png"]


def test_image_values_are_clamped(tmp_path: Path) -> None:
    save_images(np.array([-9.0, 9.0, np.nan, np.inf]).reshape(1, 1, 2, 2), tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert np.asarray(picture).ravel().tolist() == [0, 255, 128, 255]


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4), (1, 5, 4, 4)])
def test_bad_image_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="need images"):
        save_images(np.zeros(shape), tmp_path / "x.png")
    assert [*tmp_path.iterdir()] == []
