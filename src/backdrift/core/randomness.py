"""Randomness as an argument: one generator per sample, so that a batch can be split anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on ``seed`` and every name; the same on every platform."""
    text = "/".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class SampleGenerator:
    """A stack of CPU generators, one per sample (the idea of EDM2, arXiv 2312.02696).

    Sample ``i`` sees the same numbers whatever the batch is that it is drawn in, and on whatever
    device the result lands.

    Args:
        seed: root seed.
        samples: how many samples, or the indices of the samples.
        name: what the numbers are for; two names never share a stream.
    """

    def __init__(self, seed: int, samples: int | Sequence[int], name: str = "") -> None:
        indices = range(samples) if isinstance(samples, int) else samples
        self.generators = [
            torch.Generator().manual_seed(derive_seed(seed, name, index)) for index in indices
        ]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal noise, float32, shape (n, *shape)."""
        drawn = [torch.randn(tuple(shape), generator=g) for g in self.generators]
        return torch.stack(drawn).to(device)


def generator(seed: int, *names: object) -> torch.Generator:
    """One CPU generator for a stream that does not belong to samples."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
