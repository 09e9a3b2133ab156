"""Keeps what a scan found: arrays as safetensors, pictures as PNG, findings as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from backdrift.core.results import Array, Evidence, Report
from backdrift.io.errors import CheckpointError, NoSuchCheckpoint, shown
from backdrift.io.files import read_up_to, replaced_file, replaced_folder
from backdrift.io.strict_json import parse_object

_INDEX = "evidence.json"
_CANDIDATES = "inversion.json"
_MAX_BYTES = 64 << 20


def save_images(images: ArrayLike, path: str | Path, *, columns: int | None = None) -> None:
    """Writes a PNG with the images in a nearly square grid, one pixel apart.

    Args:
        images: (N, C, H, W) in [-1, 1], a CPU tensor or an array; values outside are clamped. Of
            two channels the first is drawn, of four the first three.
        columns: of the grid; nearly square without.

    Raises:
        ValueError: not four dimensions, no images, or more than four channels.
    """
    pixels = np.asarray(images, dtype=np.float32)
    if pixels.ndim != 4 or len(pixels) == 0 or not 1 <= pixels.shape[1] <= 4:
        raise ValueError(f"need images of shape (N, 1..4, H, W), not {pixels.shape}")
    pixels = pixels[:, : 3 if pixels.shape[1] >= 3 else 1]
    count, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.uint8)
    levels = (np.nan_to_num(pixels).clip(-1, 1) + 1) * 127.5
    for index, image in enumerate(levels.round().astype(np.uint8)):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(grid[:, :, 0] if channels == 1 else grid)
    with replaced_file(path) as fresh:
        picture.save(fresh, format="PNG")


def save_evidence(report: Report, folder: str | Path) -> Path:
    """Saves the evidence of a report, one subfolder per piece, and ``evidence.json`` beside them.

    An existing evidence folder is replaced as a whole.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists, is not empty and holds no ``evidence.json``.
    """
    with replaced_folder(folder, overwrite=True, marker=_INDEX) as fresh:
        items = [
            _save_one(report, evidence, fresh, f"evidence-{number}")
            for number, evidence in enumerate(report.evidence, start=1)
        ]
        document = {
            "schema_version": report.schema_version,
            "partial": report.partial,
            "evidence": items,
        }
        (fresh / _INDEX).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


def save_candidates(
    shifts: list[Array],
    targets: list[Array | None],
    rows: list[dict[str, Any]],
    facts: dict[str, Any],
    folder: str | Path,
    scales: list[Array | None] | None = None,
) -> Path:
    """Saves what one inversion found: ``inversion.json`` and a folder per candidate, best first.

    Args:
        shifts: (C, H, W) each; ``targets`` likewise, None where there is none.
        rows: facts of every candidate; ``facts``: of the run.
        scales: standard deviation of the noise that a candidate fires on, (C, H, W); None is 1.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists and is not empty.
    """
    with replaced_folder(folder, overwrite=False, marker=_CANDIDATES) as fresh:
        rest = scales or [None] * len(shifts)
        for number, (shift, target, scale) in enumerate(zip(shifts, targets, rest, strict=True), start=1):
            place = fresh / f"candidate-{number}"
            place.mkdir()
            _save_shift(place, shift, target, scale)
        text = json.dumps({**facts, "candidates": rows}, indent=2) + "\n"
        (fresh / _CANDIDATES).write_text(text, encoding="utf-8")
    return Path(folder)


def save_trigger(
    shift: Array,
    pictures: dict[str, Array],
    name: str,
    facts: dict[str, Any],
    folder: str | Path,
    columns: int,
) -> Path:
    """Saves one trigger (C, H, W), pictures (N, C, H, W) by name, and facts as the JSON ``name``.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists and is not empty.
    """
    with replaced_folder(folder, overwrite=False, marker=name) as fresh:
        _save_shift(fresh, shift)
        for title, images in pictures.items():
            save_images(images, fresh / f"{title}.png", columns=columns)
        (fresh / name).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


def _save_one(report: Report, evidence: Evidence, root: Path, name: str) -> dict[str, Any]:
    folder = root / name
    folder.mkdir()
    _save_shift(folder, evidence.trigger, evidence.target, evidence.scale)
    for label, samples in (
        ("clean_samples", evidence.clean_samples),
        ("triggered_samples", evidence.triggered_samples),
    ):
        if len(samples):
            save_images(samples, folder / f"{label}.png")
    findings = [f.model_dump(mode="json") for f in report.findings if f.weights == evidence.weights]
    return {
        "folder": name,
        "weights": evidence.weights,
        "weights_sha256": next(
            (w.sha256 for w in report.subject.weights if w.file == evidence.weights), None
        ),
        "sampler": evidence.sampler,
        "findings": findings,
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())
        },
    }


def _save_shift(
    folder: Path, trigger: Array, target: Array | None = None, scale: Array | None = None
) -> None:
    _save_array(trigger, folder / "trigger.safetensors")
    save_images(_stretched(trigger)[None], folder / "trigger.png")
    if target is not None:
        _save_array(target, folder / "target.safetensors")
        save_images(target[None], folder / "target.png")
    if scale is not None:
        _save_array(scale, folder / "scale.safetensors")


def _save_array(array: Array, path: Path) -> None:
    save_file({path.stem: np.ascontiguousarray(array, dtype=np.float32)}, path)


def _stretched(image: Array) -> Array:
    """``image`` with its smallest value at -1 and its largest at 1; a constant becomes 0."""
    low, high = float(image.min()), float(image.max())
    return np.zeros_like(image) if high == low else (image - low) / (high - low) * 2 - 1


def load_candidates(folder: str | Path) -> list[dict[str, Any]]:
    """Reads what :func:`save_candidates` wrote, best first.

    Returns:
        The row of every candidate, with arrays as :func:`load_evidence` adds them.

    Raises:
        NoSuchCheckpoint: no ``inversion.json`` there.
        CheckpointError: a file that is missing or malformed.
    """
    root = Path(folder).resolve()
    if not (root / _CANDIDATES).is_file():
        raise NoSuchCheckpoint(f"{folder}: no {_CANDIDATES} there; the search kept nothing")
    document = parse_object(read_up_to(root / _CANDIDATES, _MAX_BYTES), _CANDIDATES)
    try:
        rows: list[dict[str, Any]] = document["candidates"]
        for number, row in enumerate(rows, start=1):
            place = root / f"candidate-{number}"
            row["trigger"] = _load_array(place / "trigger.safetensors")
            for name in ("target", "scale"):
                file = place / f"{name}.safetensors"
                row[name] = _load_array(file) if file.is_file() else None
    except (KeyError, TypeError, SafetensorError):
        raise CheckpointError(f"{_CANDIDATES} is not what a search writes; search again", "BD201") from None
    return rows


def load_evidence(folder: str | Path) -> dict[str, Any]:
    """Reads what :func:`save_evidence` wrote.

    Returns:
        ``evidence.json``; every item of its ``evidence`` has three more entries, ``trigger``, ``target``
        and ``scale``: float32 arrays (C, H, W), the last two None when there is none.

    Raises:
        NoSuchCheckpoint: no ``evidence.json`` there.
        CheckpointError: a file that is missing, changed or malformed.
    """
    root = Path(folder).resolve()
    if not (root / _INDEX).is_file():
        raise NoSuchCheckpoint(f"{folder}: no {_INDEX} there; give a folder that a scan wrote")
    document = parse_object(read_up_to(root / _INDEX, _MAX_BYTES), _INDEX)
    try:
        for number, item in enumerate(document["evidence"], start=1):
            place = root / f"evidence-{number}"
            item["trigger"] = _load_array(place / "trigger.safetensors", item["sha256"])
            for name in ("target", "scale"):
                file = place / f"{name}.safetensors"
                there = file.name in item["sha256"]
                item[name] = _load_array(file, item["sha256"]) if there else None
    except (KeyError, TypeError, SafetensorError):
        raise CheckpointError(f"{_INDEX} is not what a scan writes; scan again", "BD201") from None
    return document


def _load_array(path: Path, digests: dict[str, str] | None = None) -> Array:
    data = read_up_to(path, _MAX_BYTES)
    if digests is not None and hashlib.sha256(data).hexdigest() != digests[path.name]:
        raise CheckpointError(f"{shown(path.name)} is not what the scan wrote; scan again", "BD112")
    array: Array = load(data)[path.stem]
    return array
