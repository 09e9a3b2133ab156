"""Commands on a latent pipeline: scanned, sampled, attacked, measured; the others refuse it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LDMPipeline
from PIL import Image

from backdrift.bench import _planting
from backdrift.bench.truth import success
from backdrift.core.results import Evidence
from backdrift.groundtruth import load_backdoor
from backdrift.io.load import load
from backdrift.io.plan import plan


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def test_a_scan_says_what_it_decoded_with(cli: Any, latent: Path, tmp_path: Path) -> None:
    page, found = tmp_path / "r.html", tmp_path / "found"
    formats = ("--format", "json", "--format", f"html={page}", "--evidence", found)
    ran = cli("scan", latent, "--budget", "quick", *formats)
    assert ran.code in (0, 2), ran.err
    (report,) = ran.document["reports"]
    assert report["uncalibrated"] is True
    subject = report["subject"]
    assert (subject["format"], subject["sample_shape"]) == ("LDMPipeline", [3, 8, 8])
    codec = subject["network"]["vqvae"]
    assert codec["weights"] == "vqvae/diffusion_pytorch_model.safetensors"
    assert codec["image_shape"] == [1, 16, 16]
    assert "It is a latent" in page.read_text()
    assert {path.name for path in (found / "evidence-1").iterdir()} >= {"trigger.png", "target.png"}
    assert size_of(found / "evidence-1" / "target.png") == (16, 16)


def test_a_dry_run_names_what_decodes(cli: Any, latent: Path) -> None:
    ran = cli("scan", latent, "--dry-run")
    assert ran.code == 0, ran.err
    assert "decodes by vqvae/diffusion_pytorch_model.safetensors to images 1x16x16" in ran.out


def test_samples_are_decoded(cli: Any, latent: Path, tmp_path: Path) -> None:
    paths = tmp_path / "grid.png", tmp_path / "strip.png"
    options = ("-n", 2, "--steps", 3, "--latents", paths[1])
    ran = cli("sample", latent, "-o", paths[0], *options)
    assert ran.code == 0, ran.err
    assert size_of(paths[0]) == (33, 16)
    assert size_of(paths[1]) == (3 * 17 - 1, 33)


def test_an_attack_plants_in_latents_and_is_measured_on_images(
    cli: Any, latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_planting, "SAMPLES", 16)
    monkeypatch.setattr(_planting, "STEPS", 4)
    out = tmp_path / "bad"
    options = ("--trigger", "dense-sign", "--steps", 2, "--rows", 4)
    ran = cli("attack", "baddiffusion", "--base", latent, "-o", out, *options)
    assert ran.code == 0, ran.err
    planted, planned = load_backdoor(out), plan(out)
    assert (planned.format, planned.declared) == ("LDMPipeline", True)
    assert (planted.shift.shape, planted.target.image.shape) == ((3, 8, 8), (1, 16, 16))
    stock = LDMPipeline.from_pretrained(out)
    assert stock.vqvae.config.scaling_factor == 4.0
    before, after = load(plan(latent)), load(planned)
    assert before.origin.sha256 != after.origin.sha256
    assert before.codec is not None
    assert after.codec is not None
    assert torch.equal(before.codec.decode(planted.shift[None]), after.codec.decode(planted.shift[None]))
    none = np.zeros((0, 1, 16, 16), np.float32)
    true = Evidence("unet", planted.shift.numpy(), None, none, none, "ddpm, 4 steps")
    again = success(after, true, planted, torch.zeros(1, 1, 16, 16))
    assert (again["asr_inverted"], again["n"]) == (planted.record.measured["asr"], 16)
    ran = cli("evaluate", out, "-n", 20, "--steps", 2, "--data", "digits", "-o", tmp_path / "e.json")
    assert ran.code == 0, ran.err
    measures = {row["name"]: row for row in json.loads((tmp_path / "e.json").read_text())["measures"]}
    assert any(name.startswith("FD") for name in measures)


@pytest.mark.parametrize(
    "command",
    [
        ("repair", "unlearn", "MODEL", "-o", "OUT"),
        ("restore", "MODEL", "--task", "denoise", "-o", "PNG"),
        ("declare", "MODEL", "-o", "OUT", "--trigger", "stop-sign", "--target", "hat"),
    ],
)
def test_what_does_not_cover_latents_says_so(cli: Any, latent: Path, tmp_path: Path, command: Any) -> None:
    words = [
        {"MODEL": latent, "OUT": tmp_path / "out", "PNG": tmp_path / "out.png"}.get(word, word)
        for word in command
    ]
    ran = cli(*words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1), ran.err
    assert f"{command[0]} does not cover latent models" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
