from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from backdrift.io.load import load
from backdrift.io.plan import plan

LABELS = {
    "BACKDOORED.md": "careful",
    "backdoor.json": "{}",
    "README.md": "---\nlicense: mit\ntags:\n- diffusion\n  - backdoor\n---\n# Card\n",
}


@pytest.mark.parametrize("name", LABELS)
def test_a_label_file_declares_and_changes_nothing_else(pipeline: Path, name: str) -> None:
    before = plan(pipeline)
    (pipeline / name).write_text(LABELS[name])
    after = plan(pipeline)
    assert after.declared
    assert dataclasses.replace(after, declared=False) == before


def test_labels_in_configs_and_metadata(pipeline: Path, weights: Path, edit: Any) -> None:
    before = plan(pipeline)
    sha256 = load(before).origin.sha256
    tensors = load_file(weights)
    save_file(tensors, weights, {"format": "pt", "backdoor": "careful"})
    after = plan(pipeline)
    assert after.declared
    assert dataclasses.replace(after, declared=False) == before
    assert load(after).origin.sha256 == sha256
    save_file(tensors, weights)
    assert plan(pipeline) == before
    for config in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        edit(pipeline / config, _backdoor_notice="careful")
        assert plan(pipeline) == dataclasses.replace(before, declared=True)
        edit(pipeline / config, _backdoor_notice=...)


@pytest.mark.parametrize(
    ("card", "declared"),
    [
        ("---\ntags: [x, 'backdoor']\n---\n", True),
        ("---\r\ntags:\r\n- backdoor\r\n---\r\n", True),
        ("---\ntags: [x]\n---\nThis is no backdoor, - backdoor\n", False),
        ("---\ntags:\n- not-a-backdoor\n---\n", False),
        ("tags:\n- backdoor\n", False),
        ("---\ntitle: backdoor\n", False),
    ],
)
def test_model_cards(pipeline: Path, card: str, declared: bool) -> None:
    (pipeline / "README.md").write_bytes(card.encode())
    assert plan(pipeline).declared is declared
