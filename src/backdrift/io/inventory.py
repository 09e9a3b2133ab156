"""What lies in a checkpoint folder, by ``lstat`` alone: nothing is opened."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from backdrift.io.errors import CheckpointError, NoSuchCheckpoint, NotScannable, shown

MAX_FILES = 10_000
MAX_DEPTH = 8
_CONFIGS = ("config.json", "scheduler_config.json", "scheduler/scheduler_config.json")


@dataclass(frozen=True)
class Entry:
    """One regular file.

    Args:
        name: path relative to the checkpoint, with forward slashes.
        path: absolute path with links resolved.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class Inventory:
    """The files of a checkpoint, sorted by name."""

    root: Path
    entries: tuple[Entry, ...]

    def find(self, name: str) -> Entry | None:
        """The entry called ``name``, or None."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def inside(self, folder: str) -> tuple[Entry, ...]:
        """Entries directly inside ``folder``; an empty string is the root."""
        return tuple(e for e in self.entries if e.name.rpartition("/")[0] == folder)

    def has_folder(self, folder: str) -> bool:
        """Whether any file lies below ``folder``."""
        return any(entry.name.startswith(folder + "/") for entry in self.entries)


def take_inventory(path: str | Path) -> Inventory:
    """Lists a checkpoint folder.

    Links to files are followed when they stay inside the folder, or lead from
    ``snapshots/<revision>`` to ``blobs`` as in the cache of the Hugging Face Hub.

    A safetensors file stands for itself and the configs beside it.

    Raises:
        NoSuchCheckpoint: ``path`` does not exist.
        NotScannable: ``path`` is a file of another kind.
        CheckpointError: a device, pipe or socket, a link that is broken, leaves the folder or leads
            to a folder, more than ``MAX_FILES`` entries or ``MAX_DEPTH`` levels, unreadable folder.
    """
    try:
        root = Path(os.path.realpath(path, strict=True))
        is_folder = stat.S_ISDIR(os.stat(root).st_mode)
    except (OSError, ValueError):
        raise NoSuchCheckpoint(f"{path}: no such folder; check the path") from None
    if not is_folder and Path(path).suffix == ".safetensors":
        return _single_file(Path(path))
    if not is_folder:
        raise NotScannable(
            f"{path} is a file; backdrift scans diffusers folders: give the folder of the pipeline "
            "or of its UNet2DModel, or a .safetensors file with config.json beside it"
        )
    allowed = [root, *_hub_blobs(root)]
    entries: list[Entry] = []
    pending = [(root, "", 0)]
    seen = 0
    while pending:
        folder, prefix, depth = pending.pop()
        for item in _listed(folder, prefix):
            seen += 1
            name = prefix + item
            if seen > MAX_FILES:
                raise CheckpointError(f"more than {MAX_FILES} files; give a folder with one model", "BD109")
            mode = _mode(folder / item, name)
            if not stat.S_ISDIR(mode):
                entries.append(Entry(name, _resolved(folder / item, name, mode, allowed)))
            elif depth + 1 >= MAX_DEPTH:
                raise CheckpointError(f"folders nested deeper than {MAX_DEPTH} at {shown(name)}", "BD109")
            else:
                pending.append((folder / item, name + "/", depth + 1))
    return Inventory(root, tuple(sorted(entries, key=lambda entry: entry.name)))


def _single_file(path: Path) -> Inventory:
    root = Path(os.path.realpath(path.parent))
    allowed = [root, *_hub_blobs(root)]
    entries = []
    for name in (path.name, *_CONFIGS):
        if name == path.name or os.path.lexists(root / name):
            entries.append(Entry(name, _resolved(root / name, name, _mode(root / name, name), allowed)))
    return Inventory(root, tuple(sorted(entries, key=lambda entry: entry.name)))


def _listed(folder: Path, prefix: str) -> list[str]:
    names: list[str] = []
    try:
        with os.scandir(folder) as items:
            for item in items:
                names.append(item.name)
                if len(names) > MAX_FILES:
                    break
    except OSError as error:
        raise CheckpointError(f"cannot list {shown(prefix or '.')}: {error.strerror}", "BD108") from None
    return names


def _mode(path: Path, name: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError as error:
        raise CheckpointError(f"cannot look at {shown(name)}: {error.strerror}", "BD108") from None


def _hub_blobs(root: Path) -> list[Path]:
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots":
            return [folder.parent.parent / "blobs"]
    return []


def _resolved(path: Path, name: str, mode: int, allowed: list[Path]) -> Path:
    if stat.S_ISREG(mode):
        return path
    if not stat.S_ISLNK(mode):
        raise CheckpointError(f"{shown(name)} is a device, pipe or socket; remove it", "BD106")
    try:
        target = Path(os.path.realpath(path, strict=True))
        target_mode = os.lstat(target).st_mode
    except OSError:
        raise CheckpointError(
            f"{shown(name)} is a link to a file that is missing; download the checkpoint again",
            "BD108",
        ) from None
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise CheckpointError(f"{shown(name)} is a link that leaves the checkpoint; remove it", "BD107")
    if not stat.S_ISREG(target_mode):
        raise CheckpointError(f"{shown(name)} is a link to something that is no file; remove it", "BD107")
    return target
