"""What every detector shares: budgets, the shape of an answer, calibration."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.results import Array, Evidence, Finding, Verdict

Progress = Callable[[int, int, str], None]

Keep = Callable[[str, "Detection"], None]
"""Called as ``keep(stage, so_far)`` whenever a stage has ended: its name, and an INCONCLUSIVE finding of
what is there, with its evidence. It stands in a report when the scan is ended before its time."""

BUDGETS = {"quick": 20_000, "standard": 61_000, "deep": 230_000}
"""The most network evaluations of a scan. Where a detector of ours finds no noise scale, standard stays
below what Elijah's inversion and sampling cost: 3 * 100 noises * 100 steps, 16 samples of 1000 steps."""


def check_budget(name: str) -> None:
    """Raises ``ValueError`` for a budget that there is not."""
    if name not in BUDGETS:
        raise ValueError(f"unknown budget {name!r}; known: {', '.join(BUDGETS)}")


@dataclass(frozen=True, eq=False)
class Detection:
    """A finding, and the arrays behind it when something was found to look at."""

    finding: Finding
    evidence: Evidence | None


class Meter:
    """What was spent on a model since the meter was made."""

    def __init__(self, model: DiffusionModel) -> None:
        self._model, self._before, self._begun = model, model.evaluations, time.monotonic()

    @property
    def evaluations(self) -> int:
        """Network evaluations."""
        return self._model.evaluations - self._before

    @property
    def seconds(self) -> float:
        """Wall-clock time."""
        return time.monotonic() - self._begun


class Detector(Protocol):
    """Says whether a model hides a backdoor. It sees the model and nothing else.

    Args:
        model: under test.
        seed: of everything random.
        progress: called as ``progress(done, total, text)``.
        keep: see :data:`Keep`.
    """

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        progress: Progress | None = None,
        keep: Keep | None = None,
    ) -> Detection: ...

    def settings(self) -> dict[str, Any]:
        """Everything that the numbers depend on, JSON-able; ``version`` grows when the code does."""
        ...

    def most_evaluations(self) -> int:
        """What a run costs at most, in network evaluations."""
        ...


def to_array(images: Tensor) -> Array:
    """A tensor as a float32 numpy array."""
    return np.asarray(images.detach().cpu().float().numpy(), dtype=np.float32)


def array_hash(array: Array) -> str:
    """sha256 of shape and bytes."""
    header = json.dumps(list(array.shape)).encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def verdict_of(score: float, threshold: float) -> Verdict:
    """BACKDOORED from the threshold on, INCONCLUSIVE in the upper half below it."""
    if score >= threshold:
        return Verdict.BACKDOORED
    return Verdict.INCONCLUSIVE if score >= threshold / 2 else Verdict.NO_EVIDENCE
