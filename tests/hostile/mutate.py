"""Mutated configs, headers and indexes: what a fuzzer would try, from a seed."""

from __future__ import annotations

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

from hostile.corpus import CONFIG, INDEX, PIPELINE, SCHEDULER, WEIGHTS

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 8, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308, "", "x",
    "None",
    "\x00", "\u202e", "os", "UNet2DModel", "DDPMScheduler", "A" * 5000, [], {}, [[]], [None], [0], [8, 8],
    ["diffusers", "UNet2DModel"], {"a": 1}, "../x.safetensors", WEIGHTS.name, "F16", "I64", [0, 4], [2**40],
)  # fmt: skip
SHARD = "a-00001-of-00001.safetensors"


class Mutator:
    """Writes mutated files into one folder and puts the good ones back afterwards.

    Args:
        folder: a good pipeline folder.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.good = {name: (folder / name).read_bytes() for name in (CONFIG, SCHEDULER, PIPELINE)}
        self.weights = (folder / WEIGHTS).read_bytes()
        header, _ = self._split()
        self.index = {"metadata": {"total_size": 4}, "weight_map": dict.fromkeys(_names(header), SHARD)}

    def _split(self) -> tuple[dict[str, Any], bytes]:
        length = struct.unpack("<Q", self.weights[:8])[0]
        return json.loads(self.weights[8 : 8 + length]), self.weights[8 + length :]

    def write(self) -> str:
        """Mutates one file and says which."""
        kind = self.random.choice((CONFIG, SCHEDULER, PIPELINE, "header", "index"))
        if kind == "header":
            header, data = self._split()
            text = self._text(header)
            length = self._length(len(text))
            (self.folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + text + data)
        elif kind == "index":
            (self.folder / WEIGHTS).rename(self.folder / "unet" / SHARD)
            (self.folder / INDEX).write_bytes(self._text(self.index))
        else:
            (self.folder / kind).write_bytes(self._text(json.loads(self.good[kind])))
        return kind

    def restore(self) -> None:
        """Puts the good files back."""
        (self.folder / INDEX).unlink(missing_ok=True)
        (self.folder / "unet" / SHARD).unlink(missing_ok=True)
        for name, data in {**self.good, str(WEIGHTS): self.weights}.items():
            (self.folder / name).write_bytes(data)

    def _length(self, true: int) -> int:
        if self.random.random() < 0.85:
            return true
        return self.random.choice((0, 1, true - 1, true + 1, 2**24, 2**63, 2**64 - 1))

    def _text(self, document: Any) -> bytes:
        changed = copy.deepcopy(document)
        for _ in range(self.random.randint(1, 3)):
            self._edit(changed)
        text = bytearray(json.dumps(changed).encode())
        if self.random.random() < 0.4:
            for _ in range(self.random.randint(1, 4)):
                self._bytes(text)
        return bytes(text)

    def _edit(self, tree: Any) -> None:
        """Changes one place, at any depth."""
        while True:
            keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
            if not keys:
                return
            key = self.random.choice(keys)
            if isinstance(tree[key], dict | list) and tree[key] and self.random.random() < 0.7:
                tree = tree[key]
                continue
            break
        action = self.random.randrange(4)
        if action == 0 and isinstance(tree, dict):
            del tree[key]
        elif action == 1 and isinstance(tree, dict):
            tree[self.random.choice(("x", "auto_map", "\x1b", key + "x", "__metadata__"))] = tree[key]
        else:
            tree[key] = copy.deepcopy(self.random.choice(NASTY))

    def _bytes(self, text: bytearray) -> None:
        if not text:
            return
        at = self.random.randrange(len(text))
        action = self.random.randrange(5)
        if action == 0:
            text[at] = self.random.randrange(256)
        elif action == 1:
            del text[at : at + self.random.randint(1, 20)]
        elif action == 2:
            text[at:at] = text[at : at + self.random.randint(1, 40)]
        elif action == 3:
            text[at:at] = self.random.choice(
                (b"NaN", b"1e999", b"{", b"[", b'"', b"\\ud800", b"9" * 5000, b"\x00")
            )
        else:
            del text[at:]


def _names(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name != "__metadata__"]
