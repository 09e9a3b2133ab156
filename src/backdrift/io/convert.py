"""From pickle weights to safetensors, for a process that does nothing else.

The file is first read as opcodes (:mod:`backdrift.io.pickles`), then by PyTorch's restricted unpickler,
from the same descriptor. That unpickler has had holes, so the process has no network, no files to write
and no programs to run, and another one scans the result.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from backdrift.io.errors import CheckpointError, shown
from backdrift.io.files import opened
from backdrift.io.pickles import check_pickle
from backdrift.io.tensors import DTYPES


def convert(path: Path, descriptor: int, most_bytes: int) -> None:
    """Writes the weights of a pickle file as safetensors.

    Args:
        path: of the pickle file, links resolved.
        descriptor: open for writing, and empty.
        most_bytes: of the file, and of the values in it: a few bytes can stand for a tensor of any size.

    Raises:
        CheckpointError: too large, more than a state dict of floats, or not readable.
        NotScannable: an older format.
    """
    with opened(path) as (fd, size), os.fdopen(os.dup(fd), "rb") as file:
        if size > most_bytes:
            raise CheckpointError(f"{shown(path.name)} is larger than --max-size", "BD306")
        check_pickle(file, path.name)
        file.seek(0)
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:
            text = shown((str(error) or type(error).__name__).splitlines()[0], 200)
            raise CheckpointError(f"{shown(path.name)} cannot be read: {text}", "BD501") from None
    state = _plain(loaded, path.name)
    if sum(value.numel() * value.element_size() for value in state.values()) > most_bytes:
        raise CheckpointError(f"{shown(path.name)} holds more than --max-size", "BD306")
    alone = {
        key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in state.items()
    }
    data = memoryview(save(alone))
    while data:
        data = data[os.write(descriptor, data) :]


def _plain(loaded: Any, name: str) -> dict[str, Tensor]:
    """``loaded`` when it is a flat state dict of floats."""
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{shown(name)} holds no state dict", "BD501")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{shown(name)}: {shown(key)} is no tensor with a name", "BD501")
        if value.dtype not in DTYPES.values() or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(f"{shown(name)}: {shown(key)} is no plain tensor of floats", "BD302")
    return loaded
