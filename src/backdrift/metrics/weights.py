"""Weights that the user supplies for the published metrics; nothing is downloaded."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

_CHUNK = 1 << 20


def read_weights(path: Path, prefix: str, what: str) -> dict[str, Any]:
    """A state dictionary from a ``.pth`` file, unpickled with ``weights_only``.

    Args:
        prefix: how the SHA-256 of the file begins, as its published name has it.
        what: the published name, for the messages.

    Raises:
        ValueError: no such file, another file, or no state dictionary.
    """
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; it should be {what}") from None
    found = digest.hexdigest()
    if not found.startswith(prefix):
        raise ValueError(f"{path} is not {what}: its SHA-256 begins with {found[:8]}, not {prefix}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return state
