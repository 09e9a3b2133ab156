"""Checkpoints below a folder, by their names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdrift.io.discover import find_checkpoints
from backdrift.io.errors import CheckpointError, NoSuchCheckpoint, NotScannable


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
