"""Scans of more than one plain weight file: classes, variants, what the files show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

import backdrift
from backdrift.io.errors import CheckpointError, NoSuchClass, NotScannable
from tiny import SCHEDULE, tiny_checkpoint, tiny_unet

QUICK: dict[str, Any] = {"budget": "quick", "detector": "purediffusion"}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def conditional(folder: Path, classes: int) -> Path:
    network = tiny_unet(blocks=1, num_class_embeds=classes)
    with torch.no_grad():
        network.conv_out.weight.mul_(0.1)
    DDPMPipeline(network, DDPMScheduler(**SCHEDULE)).save_pretrained(folder)
    return folder


def test_every_class_has_a_finding_of_its_own(tmp_path: Path) -> None:
    model = conditional(tmp_path / "model", 2)
    report = backdrift.scan(model, **QUICK)
    names = [f"{WEIGHTS} (class {label})" for label in (0, 1)]
    assert [f.weights for f in report.findings] == [w.file for w in report.subject.weights] == names
    assert [e.weights for e in report.evidence] == names
    assert report.config["classes"] == [0, 1]
    assert len({f.trigger_sha256 for f in report.findings}) == 2


def test_classes_are_chosen_or_few(tmp_path: Path) -> None:
    model = conditional(tmp_path / "model", 11)
    with pytest.raises(NotScannable, match="--class"):
        backdrift.scan(model, **QUICK)
    with pytest.raises(NoSuchClass, match="0 to 10"):
        backdrift.scan(model, **QUICK, classes=[11])
    with pytest.raises(NoSuchClass, match="not class-conditional"):
        backdrift.scan(tiny_checkpoint(tmp_path / "plain"), **QUICK, classes=[0])


def test_a_broken_variant_does_not_hide_the_verdict_on_the_other(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    tensors = load_file(model / WEIGHTS)
    (model / "unet" / "unet.py").write_text("import os")
    tensors["extra"] = torch.ones(1)
    save_file(tensors, model / WEIGHTS)
    broken = model / WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    save_file({name: value * float("nan") for name, value in tensors.items()}, broken)
    report = backdrift.scan(model, **QUICK)
    assert (report.verdict, report.exit_code) == ("NO EVIDENCE", 2)
    assert len(report.findings) == 1
    assert [f.rule for f in report.static] == ["BD102", "BD403", "BD308", "BD401"]
    (model / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="NaN"):
        backdrift.scan(model, **QUICK)
