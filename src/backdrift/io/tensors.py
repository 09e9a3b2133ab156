"""Tensors of a weight file, read once: the bytes that are hashed are the bytes that are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from backdrift.io.errors import CheckpointError, shown
from backdrift.io.files import opened, read_into
from backdrift.io.header import TensorInfo, parse_header
from backdrift.io.weights import WeightPlan

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def read_tensors(candidate: WeightPlan) -> Iterator[tuple[TensorInfo, Tensor]]:
    """Every tensor in its stored dtype, sorted by name, from one descriptor per file.

    Raises:
        CheckpointError: a file is not the one that was planned, or ends early.
    """
    with ExitStack() as stack:
        places: list[tuple[TensorInfo, int, int]] = []
        for file in candidate.files:
            fd, size = stack.enter_context(opened(file.path))
            header = parse_header(fd, size, file.name)
            if header.tensors != file.tensors:
                raise CheckpointError(f"{shown(file.name)} changed during the scan; scan it again", "BD112")
            places += [(info, fd, header.data_start + info.begin) for info in header.tensors]
        for info, fd, start in sorted(places, key=lambda place: place[0].name):
            raw = torch.empty(info.end - info.begin, dtype=torch.uint8)
            read_into(fd, raw.numpy().data, start)
            yield info, raw.view(DTYPES[info.dtype]).reshape(info.shape)


class ContentHash:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, without the file's metadata."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, info: TensorInfo, tensor: Tensor) -> None:
        """Adds a tensor in its stored dtype; the order counts, so add them sorted by name."""
        head = json.dumps([info.name, info.dtype, list(info.shape)])
        self._hash.update(head.encode() + b"\n")
        self._hash.update(tensor.reshape(-1).view(torch.uint8).numpy().data)

    def hexdigest(self) -> str:
        """The digest, 64 hexadecimal characters."""
        return self._hash.hexdigest()


def content_hash(*candidates: WeightPlan) -> str:
    """The hash of weights without building their networks; the one that a report has.

    Args:
        candidates: of the denoiser, then of the VQ-VAE where there is one.

    Raises:
        CheckpointError: as :func:`read_tensors`.
    """
    digest = ContentHash()
    for candidate in candidates:
        for info, tensor in read_tensors(candidate):
            digest.add(info, tensor)
    return digest.hexdigest()
