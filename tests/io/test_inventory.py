from __future__ import annotations

import os
from pathlib import Path

import pytest

from backdrift.io import inventory as module
from backdrift.io.errors import CheckpointError, NoSuchCheckpoint, NotScannable
from backdrift.io.inventory import take_inventory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "a.txt").write_text("")
    return folder


def test_lists_files_sorted(root: Path) -> None:
    found = take_inventory(root)
    assert [entry.name for entry in found.entries] == ["a.txt", "unet/config.json"]
    assert found.find("unet/config.json").path == (root / "unet" / "config.json").resolve()
    assert [entry.name for entry in found.inside("")] == ["a.txt"]
    assert found.has_folder("unet")
    assert not found.has_folder("une")


def test_missing_paths_and_files(tmp_path: Path, root: Path) -> None:
    for path in (tmp_path / "none", "bad\0name", tmp_path / ("x" * 300)):
        with pytest.raises(NoSuchCheckpoint, match="no such folder") as caught:
            take_inventory(path)
        assert caught.value.exit_code == 4
    with pytest.raises(NotScannable, match="is a file"):
        take_inventory(root / "a.txt")


def test_pipe_is_refused_at_once(root: Path) -> None:
    os.mkfifo(root / "unet" / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"'unet/weights.safetensors' is a device, pipe"):
        take_inventory(root)


def test_links(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    link = root / "link"
    for target, message in (
        (tmp_path / "secret", "leaves the checkpoint"),
        (Path("../secret"), "leaves the checkpoint"),
        (Path("/dev/zero"), "leaves the checkpoint"),
        (root / "missing", "missing"),
        (link, "missing"),
        (root / "unet", "no file"),
    ):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(CheckpointError, match=message) as caught:
            take_inventory(root)
        assert "'link'" in str(caught.value)
    link.unlink()
    link.symlink_to("a.txt")
    assert take_inventory(root).find("link").path.name == "a.txt"


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    assert len(take_inventory(tmp_path / "alias").entries) == 2


def test_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--x--y"
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "unet").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "b1").write_text("{}")
    (repository / "refs").write_text("")
    (snapshot / "unet" / "config.json").symlink_to("../../../blobs/b1")
    for folder in (snapshot, snapshot / "unet"):
        assert len(take_inventory(folder).entries) == 1
    (snapshot / "other").symlink_to("../../refs")
    with pytest.raises(CheckpointError, match="leaves the checkpoint"):
        take_inventory(snapshot)


def test_caps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 2)
    with pytest.raises(CheckpointError, match="more than 2 files"):
        take_inventory(root)
    monkeypatch.undo()
    (root / "/".join("abcdefgh")).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="deeper than 8"):
        take_inventory(root)


def test_names_are_escaped(root: Path) -> None:
    (root / "\x1b[2J\n").symlink_to("nowhere")
    with pytest.raises(CheckpointError) as caught:
        take_inventory(root)
    assert str(caught.value).isprintable()
