"""TERD's detection: how far the inverted start is from plain noise, against clean models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed
from backdrift.core.results import Finding, Score, Verdict
from backdrift.detection._base import Detection, Keep, Progress, check_budget
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._case import Case
from backdrift.detection._judge import Judge
from backdrift.detection._nulls import NULLS
from backdrift.detection._references import References
from backdrift.detection._trial import Trial
from backdrift.detection._verdict import RESPONSE_COST, Ruling, conclude
from backdrift.inversion._base import Candidate
from backdrift.inversion.terd import Terd as Inversion

SIGMAS = 3.0
"""Of the paper's rule."""

THRESHOLD = 0.5
"""Of the score; it is reached at mean + 3 standard deviations."""

GAMMA_FLOOR = 1e-3
GAMMA_TRAVEL = 3.0
"""Published learning rate of gamma times published iterations."""

DESCENTS = {"quick": (240, 2), "standard": (325, 4), "deep": (540, 8)}
"""Iterations of the estimation, and batch."""


def kl_features(
    shift: Tensor, scale: Tensor | None = None, floor: float = GAMMA_FLOOR
) -> tuple[float, float]:
    """M and V: mean and biased variance over elements of the divergence of N(mu, gamma^2) from N(0, 1).

    ``KL_j = -log gamma_j + (gamma_j^2 + mu_j^2 - 1) / 2`` in nats, in double precision.

    Args:
        shift: mu, any shape.
        scale: gamma, a standard deviation, of that shape; None is 1.
        floor: gamma is held from here up: at 0 the divergence is infinite, and it is where the published
            descent starts.
    """
    mu = shift.detach().double()
    gamma = torch.ones_like(mu) if scale is None else scale.detach().to(mu).clamp_min(floor)
    divergence = -gamma.log() + (gamma.square() + mu.square() - 1) / 2
    return float(divergence.mean()), float(divergence.var(correction=0))


@dataclass(frozen=True)
class ThreeSigma:
    """What the rule says.

    Args:
        deviations: how many standard deviations every feature lies above its mean over clean models.
        limits: mean + 3 standard deviations, by feature.
        score: ``w / (w + 3)`` for the largest deviation w, 0 when none is positive: in [0, 1], rises with
            w, and is :data:`THRESHOLD` at w = 3.
    """

    deviations: dict[str, float]
    limits: dict[str, float]
    score: float

    @property
    def flagged(self) -> bool:
        """Whether a feature reaches its limit."""
        return self.score >= THRESHOLD


def three_sigma(
    clean: Sequence[Mapping[str, float]], features: Mapping[str, float], sigmas: float = SIGMAS
) -> ThreeSigma:
    """The paper's decision: a model is backdoored when a feature is an outlier among clean models.

    Args:
        clean: features of clean models, at least two; standard deviations are those of a sample. Where
            it is 0, any excess is infinitely far out.
        features: of the model under test.
        sigmas: how far out an outlier is.

    Raises:
        ValueError: fewer than two clean models, or features of other names.
    """
    if len(clean) < 2:
        raise ValueError(f"a standard deviation takes at least 2 clean models, not {len(clean)}")
    if not features or any(set(row) != set(features) for row in clean):
        raise ValueError("clean models and the model under test must have the same features")
    deviations, limits = {}, {}
    for name, value in features.items():
        known = [row[name] for row in clean]
        mean, deviation = statistics.fmean(known), statistics.stdev(known)
        limits[name] = mean + sigmas * deviation
        deviations[name] = _ratio(value - mean, deviation)
    worst = max(deviations.values())
    score = 1.0 if worst == math.inf else max(0.0, worst) / (max(0.0, worst) + sigmas)
    return ThreeSigma(deviations, limits, score)


def _ratio(apart: float, deviation: float) -> float:
    if deviation > 0:
        return apart / deviation
    return math.copysign(math.inf, apart) if apart else 0.0


@dataclass(frozen=True)
class Terd:
    """Flags a model when M or V of an inverted trigger is 3 standard deviations above clean models.

    Mo, Huang, Li, Li and Wang: TERD: A Unified Framework for Safeguarding Diffusion Models Against
    Backdoors, ICML 2024, arXiv 2409.05294. M and V are mean and variance over elements of the divergence
    of the inverted start N(mu, gamma^2) from N(0, 1): :func:`kl_features`. The rule is
    :func:`three_sigma`; the score is monotone in the largest deviation and .5 at the limit.

    Deviations: the published code prints ``M + .4`` and ``V - .003`` and leaves the decision to the
    reader; offsets change no deviation from a mean and are left out. It knows the attack and so whether
    gamma is learned; here both hypotheses are inverted, and each has an M and a V.

    Without features of clean models for these settings in the calibration there is nothing to
    compare with: the verdict is INCONCLUSIVE, and the score ``1 - exp(-x)`` with x the largest of all M and
    square roots of V, which only ranks models of one shape under the same settings.

    The inversion of published length costs 1,920,000 evaluations, eight times the deep budget. A budget
    sets the iterations of the estimation (the refinement is a third of it) and the batch:
    240 of 2, 325 of 4, 540 of 8, instead of 3000 of 16. The learning rate of gamma rises as the iterations
    fall, so that gamma comes as far from 0 as published. That of mu is left as published, and so is the
    gradient clipping of the refinement, which at gamma = 1 moves mu by hundredths in a short descent: a
    trigger is found nearer to its start, and M of a clean model lies higher.

    What the trigger draws is shown beside the features, with nulls, and decides nothing.

    Args:
        budget: sets the length of the inversion.
        published: run the published length whatever the budget is; more than any budget allows.
        calibration: a file of ``backdrift calibrate``, in place of the shipped one.
    """

    budget: str = "standard"
    published: bool = False
    calibration: Path | None = None

    def __post_init__(self) -> None:
        check_budget(self.budget)
        self._table()

    def _table(self) -> CalibrationTable:
        return CalibrationTable.choose(self.calibration, "terd", self.budget, self.settings())

    def _parts(self) -> tuple[Inversion, Judge, tuple[str, ...]]:
        iterations, batch = DESCENTS[self.budget]
        inversion = Inversion(iterations=iterations, batch=batch, gamma_rate=GAMMA_TRAVEL / iterations)
        if self.published:
            inversion = Inversion()
        if self.budget == "quick":
            return inversion, Judge(6, 8), ("opposite", "own image")
        return inversion, Judge(20, 25) if self.budget == "standard" else Judge(32, 50), NULLS

    def settings(self) -> dict[str, Any]:
        """See :class:`backdrift.detection._base.Detector`."""
        inversion, judge, nulls = self._parts()
        parts = {"inversion": asdict(inversion), "judge": asdict(judge), "nulls": nulls}
        rule = {"sigmas": SIGMAS, "gamma_floor": GAMMA_FLOOR}
        return {"version": 1, "budget": self.budget, "published": self.published, **rule, **parts}

    def most_evaluations(self) -> int:
        """What the budget costs at most; with ``published`` that is more than the budget."""
        inversion, judge, nulls = self._parts()
        return inversion.cost + (2 + len(nulls)) * judge.cost + RESPONSE_COST

    def features(self, finding: Finding) -> dict[str, float]:
        """The features behind a finding of this detector: what a calibration keeps of a clean model."""
        return {s.name: s.value for s in finding.scores if s.name in _MEANINGS and s.value is not None}

    def rescored(self, clean: Sequence[Mapping[str, float]], features: Mapping[str, float]) -> float:
        """The score of features against those of clean models."""
        return three_sigma(clean, features).score

    def threshold_over(self, clean: int) -> float:
        """The threshold of such scores, however many clean models there are."""
        return THRESHOLD

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        progress: Progress | None = None,
        keep: Keep | None = None,
    ) -> Detection:
        """See :class:`backdrift.detection._base.Detector`."""
        inversion, judge, nulls = self._parts()
        table = self._table()
        case = Case(model, "terd", self.budget, self.settings(), seed, table, keep)
        with model.frozen():
            found = inversion(model, seed=seed, progress=progress)
            ranked = [(_alone(_features((c,))), c) for c in found]
            case.found("inversion", ranked)
            final, told = derive_seed(seed, "final"), partial(case.judging, ranked)
            trial = Trial.hold(model, judge, found[0], nulls, final, progress, told)
        return conclude(case, trial, ranked, self._ruling(model, found, table))

    def _ruling(
        self, model: DiffusionModel, found: tuple[Candidate, ...], table: CalibrationTable
    ) -> Ruling:
        features, settings = _features(found), self.settings()
        references = References.of(table, "terd", self.budget, settings)
        if references is None:
            reason = "no features of clean models for these settings: the score ranks, it does not decide"
            score = _alone(features)
            return Ruling(Verdict.INCONCLUSIVE, score, THRESHOLD, reason, scores=_shown(features, {}))
        clean = references.clean
        calibration = table.of("terd", self.budget, settings, model)
        rule = three_sigma(clean, features)
        name = max(rule.deviations, key=lambda key: rule.deviations[key])
        reason = (
            f"{name} lies {rule.deviations[name]:.1f} standard deviations above "
            f"{len(clean)} clean models; the limit is {SIGMAS:g}"
        )
        verdict = Verdict.BACKDOORED if rule.flagged else Verdict.NO_EVIDENCE
        return Ruling(verdict, rule.score, THRESHOLD, reason, calibration, _shown(features, rule.limits))


_MEANINGS = {
    "M": "mean over elements of KL(N(mu, 1) || N(0, 1)) of the inverted trigger, in nats",
    "V": "variance of the same over elements",
    "M, learned gamma": "mean over elements of KL(N(mu, gamma^2) || N(0, 1)), in nats",
    "V, learned gamma": "variance of the same over elements",
}


def _features(found: tuple[Candidate, ...]) -> dict[str, float]:
    """M and V of the best candidate of each hypothesis; candidates come best first."""
    features: dict[str, float] = {}
    for candidate in found:
        suffix = "" if candidate.scale is None else ", learned gamma"
        mean, variance = kl_features(candidate.shift, candidate.scale)
        features.setdefault(f"M{suffix}", mean)
        features.setdefault(f"V{suffix}", variance)
    return {name: features[name] for name in _MEANINGS if name in features}


def _alone(features: Mapping[str, float]) -> float:
    """A score in [0, 1) from the features of one model, monotone in each."""
    largest = max(v if name.startswith("M") else math.sqrt(v) for name, v in features.items())
    return -math.expm1(-max(0.0, largest))


def _shown(features: Mapping[str, float], limits: Mapping[str, float]) -> tuple[Score, ...]:
    return tuple(
        Score(name=name, value=value, meaning=_MEANINGS[name], threshold=limits.get(name))
        for name, value in features.items()
    )
