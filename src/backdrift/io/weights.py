"""Which weight files of a folder can be scanned: headers and indexes, no values. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdrift.io.errors import CheckpointError, NotScannable, printable, shown
from backdrift.io.header import Header, TensorInfo, read_header
from backdrift.io.inventory import Entry, Inventory
from backdrift.io.leftovers import PICKLES
from backdrift.io.strict_json import MAX_INDEX_BYTES, read_object

MAX_WEIGHT_FILES = 16
MAX_SHARDS = 64
MAX_HEADERS_BYTES = 16 << 20
STANDARD_WEIGHTS = "diffusion_pytorch_model.safetensors"

# diffusers prefers an index to the single file beside it.
_INDEX = re.compile(r"\.safetensors\.index[^/]*\.json\Z")
_SHARD = re.compile(r"-\d{5}-of-\d{5}[^/]*\.safetensors\Z")
_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Bounds:
    """The largest weights that are scanned.

    Args:
        parameters: values in one model.
        size: bytes of its weight files together.
    """

    parameters: int = 2_000_000_000
    size: int = 16 << 30


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file.

    Args:
        path: absolute, links resolved.
        name: relative to the checkpoint, safe to print.
        tensors: from the header, sorted by name.
    """

    path: Path
    name: str
    tensors: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class WeightPlan:
    """One set of weights that can be scanned: a file, or the shards of an index.

    Args:
        name: of the file or the index, relative to the checkpoint, safe to print.
        files: one, or every shard; no tensor is in two of them.
        dtype: dtypes of the tensors, for example ``float16`` or ``float16+float32``.
        parameters: number of values.
    """

    name: str
    files: tuple[WeightFile, ...]
    dtype: str
    parameters: int

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors of every file, sorted by name."""
        return tuple(sorted((t for file in self.files for t in file.tensors), key=lambda t: t.name))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name."""
        return {tensor.name: tensor.shape for file in self.files for tensor in file.tensors}


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        candidates: the standard name first.
        metadata: of every header that was read.
        used: names of the files of the candidates.
        why: files and indexes that are no candidates, and the reason.
    """

    candidates: tuple[WeightPlan, ...]
    metadata: tuple[dict[str, str], ...]
    used: frozenset[str]
    why: dict[str, str]


def find_weights(
    inventory: Inventory, folder: str, bounds: Bounds, converted: Mapping[str, Path] | None = None
) -> Found:
    """Reads every safetensors header and index directly inside ``folder``.

    Args:
        converted: safetensors files made from pickle files of the folder, by the name of those.

    Raises:
        CheckpointError: a damaged file, an index that is unsafe or does not match, too large weights.
        NotScannable: no safetensors weights, or too many.
    """
    entries = inventory.inside(folder)
    extra = [
        Entry(name, path.resolve())
        for name, path in (converted or {}).items()
        if name.rpartition("/")[0] == folder
    ]
    files = [e for e in entries if e.name.endswith(".safetensors")] + extra
    indexes = [e for e in entries if _INDEX.search(e.name)]
    if not files:
        raise _no_weights(entries, folder)
    if len(indexes) > MAX_WEIGHT_FILES or len(files) > MAX_SHARDS:
        raise NotScannable(f"more than {MAX_WEIGHT_FILES} sets of weights; remove what is not needed")
    headers = _headers(files)
    by_name = {entry.name: entry for entry in files}
    sets: dict[str, list[Entry]] = {}
    for index in indexes:
        sets[index.name] = [by_name[name] for name in _shards(index, headers, folder)]
    sharded = {entry.name for shards in sets.values() for entry in shards}
    orphan = next((e.name for e in files if _SHARD.search(e.name) and e.name not in sharded), None)
    if orphan is not None:
        raise CheckpointError(f"{shown(orphan)} is a shard without an index; download again", "BD305")
    sets |= {e.name: [e] for e in files if e.name not in sharded}
    if len(set(map(printable, sets))) < len(sets):
        raise CheckpointError("two weight files have names that print alike; do not trust them", "BD105")
    if len(sets) > MAX_WEIGHT_FILES:
        raise NotScannable(f"more than {MAX_WEIGHT_FILES} sets of weights; remove what is not needed")
    ranked = sorted(sets, key=_rank(folder))
    plans = {name: _weight_plan(name, sets[name], headers, bounds) for name in ranked}
    first = plans[ranked[0]]
    other = f"not a name that diffusers loads, and other tensors than in {first.name}"
    kept = {name: plan for name, plan in plans.items() if _stock(name) or plan.shapes == first.shapes}
    return Found(
        tuple(kept.values()),
        tuple(header.metadata for header in headers.values()),
        frozenset({*kept, *(entry.name for name in kept for entry in sets[name])}),
        dict.fromkeys(plans.keys() - kept.keys(), other),
    )


def _headers(files: list[Entry]) -> dict[str, Header]:
    """The header of every file, as long as they hold no more than a folder of real weights does."""
    headers: dict[str, Header] = {}
    left = MAX_HEADERS_BYTES
    for entry in files:
        headers[entry.name] = read_header(entry.path, entry.name)
        left -= headers[entry.name].data_start
        if left < 0:
            raise CheckpointError(
                f"the headers up to {shown(entry.name)} hold more than {MAX_HEADERS_BYTES} bytes; "
                "give a folder with one model",
                "BD301",
            )
    return headers


def pickle_weights(inventory: Inventory, folder: str) -> list[Entry]:
    """The pickle files of ``folder`` that diffusers would load as the weights of the network."""
    return [e for e in inventory.inside(folder) if _stock(e.name) and e.name.endswith(".bin")]


def _rank(folder: str) -> Any:
    standard = f"{folder}/{STANDARD_WEIGHTS}" if folder else STANDARD_WEIGHTS

    def rank(name: str) -> tuple[bool, bool, bool, str]:
        return name != f"{standard}.index.json", name != standard, not _stock(name), name

    return rank


def _stock(name: str) -> bool:
    return name.rpartition("/")[2].startswith("diffusion_pytorch_model.")


def _shards(index: Entry, headers: Mapping[str, Header], folder: str) -> list[str]:
    """Names of the shards; the index and the headers must say the same about every tensor."""
    what = shown(index.name)
    document = read_object(index.path, index.name, MAX_INDEX_BYTES)
    places = document.get("weight_map")
    if not isinstance(places, dict) or not places or document.keys() - {"metadata", "weight_map"}:
        raise CheckpointError(f"{what} must hold a weight_map, and metadata at most", "BD304")
    for file in places.values():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & {"/", "\\"}:
            raise CheckpointError(
                f"{what} names {shown(file)}, which is no safetensors file beside it; do not trust it",
                "BD304",
            )
    full = {file: f"{folder}/{file}" if folder else file for file in places.values()}
    missing = next((name for name in full.values() if name not in headers), None)
    if missing is not None:
        raise CheckpointError(f"{what} names {shown(missing)}, which is missing; download again", "BD305")
    claimed = {(tensor, full[file]) for tensor, file in places.items()}
    present = {(t.name, name) for name in full.values() for t in headers[name].tensors}
    wrong = min(claimed ^ present, default=None)
    if wrong is not None:
        raise CheckpointError(
            f"{what} and {shown(wrong[1])} disagree about tensor {shown(wrong[0])}; download again",
            "BD305",
        )
    return sorted(full.values())


def _weight_plan(
    name: str, entries: list[Entry], headers: Mapping[str, Header], bounds: Bounds
) -> WeightPlan:
    files = tuple(WeightFile(e.path, printable(e.name), headers[e.name].tensors) for e in entries)
    tensors = [tensor for file in files for tensor in file.tensors]
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    size = sum(headers[e.name].size for e in entries)
    if parameters > bounds.parameters or size > bounds.size:
        raise CheckpointError(
            f"{shown(name)} holds {parameters} values in {size} bytes; at most {bounds.parameters} "
            f"values (--max-params) and {bounds.size} bytes (--max-size) are scanned",
            "BD306",
        )
    dtypes = sorted({_DTYPE_NAMES[tensor.dtype] for tensor in tensors})
    return WeightPlan(printable(name), files, "+".join(dtypes), parameters)


def _no_weights(entries: tuple[Entry, ...], folder: str) -> NotScannable:
    pickles = [e.name for e in entries if e.name.lower().endswith(PICKLES)]
    if pickles:
        return NotScannable(
            f"only pickle weights ({', '.join(map(shown, pickles[:3]))}), which are not opened "
            "without --allow-pickle; ask the publisher for safetensors",
            "BD101",
        )
    return NotScannable(f"no .safetensors weights in {folder or 'the folder'}; nothing to scan")
