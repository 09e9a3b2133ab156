"""What every detector shares: budgets, the shape of an answer, calibration."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.results import Array, Calibration, Evidence, Finding, Verdict
from backdrift.metrics.rates import wilson

Progress = Callable[[int, int, str], None]

BUDGETS = {"quick": 5_000, "standard": 46_000, "deep": 200_000}
"""The most network evaluations of a scan. Standard is what Elijah's inversion and sampling cost:
3 * 100 noises * 100 steps, and 16 samples of 1000 steps."""


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
    """

    def __call__(
        self, model: DiffusionModel, *, seed: int, progress: Progress | None = None
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


def calibration_table() -> dict[str, Any]:
    """The shipped reference population: ``detection/calibration.json``."""
    file = resources.files("backdrift.detection").joinpath("calibration.json")
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return table


def calibrated(
    detector: str, budget: str, settings: dict[str, Any], model: DiffusionModel
) -> Calibration | None:
    """The calibration of a detector at a budget, or None when there is none for these settings.

    A model is in range when the population has clean models of its resolution and channels, of a
    size within a factor of three, and of the same kind of schedule.
    """
    table = calibration_table()
    entry = table["detectors"].get(detector, {}).get(budget)
    if entry is None or entry["settings_sha256"] != settings_hash(settings):
        return None
    threshold = float(entry["threshold"])
    clean = [float(row["score"]) for row in entry["clean"]]
    flagged = sum(score >= threshold for score in clean)
    reasons = out_of_range(table["population"]["models"], model)
    return Calibration(
        id=table["id"],
        population=table["population"]["description"],
        n_clean=len(clean),
        n_backdoored=len(entry["backdoored"]),
        threshold=threshold,
        false_positive_rate=flagged / max(1, len(clean)),
        interval=wilson(flagged, len(clean)),
        in_range=not reasons,
        out_of_range=reasons,
        clean_scores=clean,
        backdoored_scores=[float(row["score"]) for row in entry["backdoored"]],
    )


def out_of_range(models: list[dict[str, Any]], model: DiffusionModel) -> list[str]:
    """Why a model is unlike every clean model of a population; empty when it is like one.

    Args:
        models: the ``sample_shape`` (a list), ``parameters`` and ``last_alpha`` of each.
    """
    size = sum(p.numel() for p in model.network.parameters())
    shape = list(model.sample_shape)
    alike = [row for row in models if row["sample_shape"] == shape]
    if not alike:
        known = sorted({"x".join(map(str, row["sample_shape"])) for row in models})
        return [f"sample shape {'x'.join(map(str, shape))}; calibrated: {', '.join(known)}"]
    reasons = []
    if not any(row["parameters"] / 3 <= size <= 3 * row["parameters"] for row in alike):
        most = max(row["parameters"] for row in alike)
        reasons.append(f"{size:,} parameters; calibrated up to {3 * most:,} at this shape")
    last = float(model.schedule.alpha[-1])
    if len(model.schedule) != 1000 or not any(abs(row["last_alpha"] - last) < 1e-3 for row in alike):
        reasons.append("noise schedule; calibrated: T = 1000, linear")
    return reasons


def settings_hash(settings: dict[str, Any]) -> str:
    """sha256 of a detector's settings.

    A calibration carries it; a detector that was changed since is uncalibrated.
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def verdict_of(score: float, threshold: float) -> Verdict:
    """BACKDOORED from the threshold on, INCONCLUSIVE in the upper half below it."""
    if score >= threshold:
        return Verdict.BACKDOORED
    return Verdict.INCONCLUSIVE if score >= threshold / 2 else Verdict.NO_EVIDENCE
