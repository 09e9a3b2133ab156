"""The header of a safetensors file, read with our own eyes and without torch.

Stricter than the reference parser: duplicate names, tensors without elements and unusual dtypes are
refused as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdrift.io.errors import CheckpointError, shown
from backdrift.io.files import opened, read_into
from backdrift.io.strict_json import parse_object

MAX_HEADER_BYTES = 4 << 20
"""Forty times the header of a UNet with 1,000 tensors."""
MAX_DIMENSIONS = 8
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file.

    Args:
        dtype: a key of ``ITEM_BYTES``.
        begin: first byte, counted from the end of the header; ``end`` is one past the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    Args:
        tensors: sorted by name; together they cover the file after the header exactly.
        metadata: the ``__metadata__`` of the file.
        data_start: offset of the first tensor byte in the file.
        size: bytes of the whole file.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    data_start: int
    size: int


def read_header(path: Path, name: str) -> Header:
    """Reads and checks the header of the file at ``path`` (links resolved).

    Raises:
        CheckpointError: see :func:`parse_header`.
    """
    with opened(path) as (fd, size):
        return parse_header(fd, size, name)


def parse_header(fd: int, size: int, name: str) -> Header:
    """Reads and checks the header of an open file.

    Args:
        size: of the file, in bytes.
        name: what to call the file in a message.

    Raises:
        CheckpointError: truncated or oversized header, bad JSON, no tensors, an unknown dtype, a
            shape that does not match its bytes, gaps, overlaps or trailing bytes.
    """
    what = shown(name)
    if size < 8:
        raise CheckpointError(f"{what} is too short for a safetensors file; download it again", "BD301")
    length = int.from_bytes(_read(fd, 8, 0), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{what} announces a header of {length} bytes; not safetensors", "BD301")
    if 8 + length > size:
        raise CheckpointError(f"{what} ends inside its header; download it again", "BD301")
    document = parse_object(_read(fd, length, 8), f"{name} (header)")
    metadata = _metadata(document.pop("__metadata__", {}), what)
    tensors = sorted((_tensor(key, value, what) for key, value in document.items()), key=lambda t: t.name)
    if not tensors:
        raise CheckpointError(f"{what} holds no tensors", "BD301")
    _check_cover(tensors, size - 8 - length, what)
    return Header(tuple(tensors), metadata, 8 + length, size)


def _read(fd: int, length: int, offset: int) -> bytes:
    buffer = bytearray(length)
    read_into(fd, memoryview(buffer), offset)
    return bytes(buffer)


def _metadata(value: Any, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"{what}: __metadata__ must map names to text", "BD301")
    return value


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor(name: str, value: Any, what: str) -> TensorInfo:
    who = f"{what}: tensor {shown(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{who} must have dtype, shape and data_offsets", "BD301")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{who} has dtype {shown(dtype)}; known: {', '.join(ITEM_BYTES)}", "BD302")
    if not isinstance(shape, list) or not all(map(_natural, shape)) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{who} has no valid shape: {shown(shape)}", "BD302")
    if 0 in shape:
        raise CheckpointError(f"{who} has no elements: {shown(shape)}", "BD302")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise CheckpointError(f"{who} has no valid data_offsets: {shown(offsets)}", "BD303")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{who}: {end - begin} bytes do not match {dtype} of {shown(shape)}", "BD303")
    return TensorInfo(name, dtype, tuple(shape), begin, end)


def _check_cover(tensors: list[TensorInfo], available: int, what: str) -> None:
    expected = 0
    for tensor in sorted(tensors, key=lambda t: t.begin):
        if tensor.begin != expected:
            problem = "overlaps another" if tensor.begin < expected else "leaves a gap before it"
            raise CheckpointError(f"{what}: tensor {shown(tensor.name)} {problem}", "BD303")
        expected = tensor.end
    if expected > available:
        raise CheckpointError(f"{what} is {expected - available} bytes short; download it again", "BD303")
    if expected < available:
        raise CheckpointError(f"{what} has {available - expected} bytes that belong to no tensor", "BD303")
