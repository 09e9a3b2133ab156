"""What the files show beside the verdict: rule, level, place."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backdrift.io.load import load
from backdrift.io.plan import inspect, plan
from backdrift.io.static import SHOWN_PER_RULE


def rules(folder: Path) -> list[tuple[str, str, str]]:
    return [(f.rule, f.level, f.file) for f in plan(folder).static]


def torch_pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    return buffer.getvalue()


def test_a_plain_pipeline_has_no_findings(pipeline: Path) -> None:
    for name in ("README.md", "LICENSE", "grid.png", "samples.txt"):
        (pipeline / name).write_bytes(b"\x89PNG or words")
    assert rules(pipeline) == []
    assert inspect(pipeline).exit_code == 0


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("unet/diffusion_pytorch_model.bin", b"", "BD101"),
        ("unet/diffusion_pytorch_model.bin.index.json", b"{}", "BD101"),
        ("optimizer", b"\x80\x04anything", "BD101"),
        ("unet/unet.py", b"import os", "BD102"),
        ("__pycache__/x.PYC", b"", "BD102"),
        ("run", b"#!/bin/sh", "BD102"),
        ("tool", b"\x7fELF", "BD102"),
        ("model.onnx", b"", "BD103"),
        ("unknown.thing", torch_pickle(), "BD103"),
        ("extra.safetensors", b"", "BD104"),
        ("grid.png", torch_pickle(), "BD105"),
        ("notes.txt", b"\x80\x02c", "BD105"),
        ("feature.json", b"\x7fELF", "BD105"),
    ],
)
def test_files_beside_the_model(pipeline: Path, name: str, content: bytes, rule: str) -> None:
    (pipeline / name).parent.mkdir(exist_ok=True)
    (pipeline / name).write_bytes(content)
    ((found, level, file),) = rules(pipeline)
    assert (found, file) == (rule, name)
    assert inspect(pipeline).exit_code == int(level == "error") == int(rule == "BD105")


def test_labels_are_no_finding(pipeline: Path) -> None:
    for name in ("backdoor.safetensors", "backdoor.json", "BACKDOORED.md"):
        (pipeline / name).write_bytes(b"\x80\x04")
    assert rules(pipeline) == []


def test_many_files_are_summed_up_and_names_are_printable(pipeline: Path) -> None:
    for number in range(SHOWN_PER_RULE + 7):
        (pipeline / f"{number}\n\x1b.pkl").write_bytes(b"")
    found = plan(pipeline).static
    assert len(found) == SHOWN_PER_RULE + 1
    assert found[-1].message == "7 more files like these"
    assert all(f.file.isprintable() and f.message.isprintable() for f in found)


def test_extra_and_constant_tensors(pipeline: Path, weights: Path) -> None:
    tensors = load_file(weights)
    before = load(plan(pipeline)).network.state_dict()
    tensors["evil\n"] = torch.full((5,), float("nan"))
    save_file(tensors, weights)
    model = load(plan(pipeline))
    ((rule, message),) = [(f.rule, f.message) for f in model.origin.findings]
    assert (rule, message.isprintable()) == ("BD308", True)
    assert all(torch.equal(before[name], value) for name, value in model.network.state_dict().items())
    del tensors["evil\n"]
    tensors["conv_out.weight"].fill_(0.25)
    save_file(tensors, weights)
    assert [f.rule for f in load(plan(pipeline)).origin.findings] == ["BD402"]
