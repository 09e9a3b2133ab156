"""Projects a found trigger out of the starting noise, where the noise says that it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from backdrift.core.hooks import SamplingHook
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.inversion._base import Candidate
from backdrift.repair._base import Log, Progress, Repaired, check_evidence

NOISES = 2000
"""Plain starts on which the false-rejection rate is measured."""


@dataclass(frozen=True, eq=False)
class Filter:
    """The likelihood-ratio test of ``N(tau, I)`` against ``N(0, I)``, one for each trigger.

    The ratio grows with ``z = <x, tau> / ||tau||``, which is standard normal on plain noise and has the
    mean ``<r, tau> / ||tau||`` with the trigger r. A start is suspicious when any z is above ``limit``.

    Args:
        directions: ``tau / ||tau||``, (K, C, H, W).
        limit: ``(1 - rate / K)`` quantile of the standard normal.
    """

    directions: Tensor
    limit: float

    def scores(self, starts: Tensor) -> Tensor:
        """The statistic of every start (B, C, H, W) and trigger: (B, K)."""
        return starts.flatten(1) @ self.directions.to(starts).flatten(1).T

    def rejects(self, starts: Tensor) -> Tensor:
        """Which starts are suspicious: bool, (B,)."""
        return (self.scores(starts) > self.limit).any(1)

    def cleanse(self, starts: Tensor) -> Tensor:
        """Suspicious starts less their part along the triggers that they showed; the others untouched.

        One trigger after the other, so that triggers that are nearly parallel are not taken off twice.
        """
        for direction in self.directions.to(starts):
            z = (starts * direction).flatten(1).sum(1)
            starts = starts - torch.where(z > self.limit, z, 0).view(-1, 1, 1, 1) * direction
        return starts


@dataclass(frozen=True)
class InputFilter:
    """Cleanses a suspicious start by taking the found trigger's direction out of it.

    Ours; the test is that of TERD (ICML 2024, arXiv 2409.05294; its own detector is
    ``detection/inputs/terd.py``) with the threshold at a stated error rate instead of at ratio 1. On
    plain noise the test of one trigger rejects exactly ``false_rejection_rate``, of K triggers at most
    that (Bonferroni). A start with the trigger r passes with probability
    ``Phi(limit - <r, tau> / ||tau||)``. A rejected plain start loses one coordinate of C H W and still
    draws a clean image.

    The scale of the noise that some backdoors need (TrojDiff's gamma) is not tested for, its shift is.
    The weights stay backdoored; what is left of r after the projection, ``r - <r, tau> tau / ||tau||^2``,
    may be enough where the found trigger is far from the true one.

    Args:
        false_rejection_rate: share of plain starts that are called suspicious, in (0, 1).
    """

    changes_weights: ClassVar[bool] = False

    false_rejection_rate: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.false_rejection_rate < 1:
            raise ValueError(f"a false-rejection rate lies in (0, 1), not at {self.false_rejection_rate}")

    def fit(self, evidence: Sequence[Candidate]) -> Filter:
        """The test for found triggers."""
        shifts = torch.stack([c.shift.detach().cpu() for c in evidence])
        norms = shifts.flatten(1).norm(dim=1)
        if not bool((norms > 0).all()):
            raise ValueError("a found trigger is zero: there is no direction to test")
        limit = NormalDist().inv_cdf(1 - self.false_rejection_rate / len(shifts))
        return Filter(shifts / norms.view(-1, 1, 1, 1), limit)

    def most_evaluations(self) -> int:
        """What it costs at most, about; see :class:`backdrift.repair._base.Repair`."""
        return 0

    def __call__(
        self,
        model: DiffusionModel,
        evidence: Sequence[Candidate] = (),
        *,
        data: Tensor | None = None,
        seed: int,
        progress: Progress | None = None,
    ) -> Repaired:
        """See :class:`backdrift.repair._base.Repair`; a hook, and the rate measured on plain starts."""
        check_evidence(evidence, model.sample_shape)
        log, test = Log(self, seed, model), self.fit(evidence)
        plain = SampleGenerator(seed, NOISES, "plain starts").normal(model.sample_shape)
        rates = {
            "false-rejection rate, stated": self.false_rejection_rate,
            "false-rejection rate, measured": float(test.rejects(plain).float().mean()),
        }
        hook = SamplingHook(f"input filter at {self.false_rejection_rate:g}", start=test.cleanse)
        return Repaired(model, hook, log.record("nothing to search", rates))
