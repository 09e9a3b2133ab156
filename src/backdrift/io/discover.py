"""Checkpoints below a folder, by their names alone: nothing is opened. Torch-free."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from backdrift.io.errors import CheckpointError, NoSuchCheckpoint, NotScannable
from backdrift.io.inventory import MAX_DEPTH, MAX_FILES
from backdrift.io.leftovers import OTHER_FORMATS, PICKLES

MARKS = ("model_index.json", "config.json")
WEIGHTS = (*PICKLES, ".safetensors", *OTHER_FORMATS)


def find_checkpoints(folder: str | Path) -> list[Path]:
    """Every folder below, itself included, that directly holds a config or weights, sorted by path.

    What lies below such a folder belongs to it. A folder of another kind of model is found too, so that
    its scan says that it is not covered: nothing that could be loaded is passed over in silence. A link to
    a folder counts as a checkpoint and is not searched.

    Raises:
        NoSuchCheckpoint: no such folder.
        NotScannable: nothing below it looks like a model.
        CheckpointError: an unreadable folder, or more than ``MAX_FILES`` entries or ``MAX_DEPTH`` levels.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NoSuchCheckpoint(f"{folder}: no such folder; check the path")
    found: list[Path] = []
    pending = [(root, 0)]
    seen = 0
    while pending:
        here, depth = pending.pop()
        entries = _entries(here)
        seen += len(entries)
        if seen > MAX_FILES or depth > MAX_DEPTH:
            raise CheckpointError(
                f"{folder} holds more than {MAX_FILES} entries or {MAX_DEPTH} levels; name its parts",
                "BD109",
            )
        if any(_is_mark(entry.name) for entry in entries if not entry.is_dir()):
            found.append(here)
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append((here / entry.name, depth + 1))
            elif entry.is_dir():
                found.append(here / entry.name)
    if not found:
        raise NotScannable(f"{folder}: no folder below it holds a model")
    return sorted(found)


def _is_mark(name: str) -> bool:
    return name in MARKS or name.lower().endswith(WEIGHTS)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return list(islice(items, MAX_FILES + 1))
    except OSError as error:
        raise CheckpointError(f"cannot list {folder}: {error.strerror}", "BD108") from None
