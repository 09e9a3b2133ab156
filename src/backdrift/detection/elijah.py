"""Elijah's detection: what an inverted trigger draws is uniform and smooth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed, generator
from backdrift.core.results import Finding, Score, Verdict
from backdrift.core.shift import Solver
from backdrift.detection._base import Detection, Keep, Progress, check_budget, verdict_of
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._case import UNSCREENED, Case
from backdrift.detection._judge import Judge
from backdrift.detection._references import References, by_forest, by_thresholds, share_at, share_below
from backdrift.detection._trial import Trial
from backdrift.detection._uniform import total_variation, uniformity
from backdrift.detection._verdict import RESPONSE_COST, UNCALIBRATED_THRESHOLD, Ruling, conclude
from backdrift.inversion.elijah import Elijah as Inversion
from backdrift.metrics.features import RandomConv
from backdrift.metrics.lpips import Lpips
from backdrift.metrics.pairwise import PairDistance, pair_distance

NULLS = ("opposite",)

HYPOTHESES: dict[str, dict[Solver, tuple[Inversion, Judge]]] = {
    "quick": {
        "sde": (Inversion(noises=24, steps=36), Judge(samples=8, steps=20)),
        "ode": (Inversion(noises=24, steps=10, scale=1.0, family="ode"), Judge(samples=8, steps=10)),
    },
    "standard": {
        "sde": (Inversion(), Judge(samples=8, steps=200)),
        "ode": (Inversion(steps=10, scale=1.0, family="ode"), Judge(samples=8, steps=50)),
    },
    "deep": {
        "sde": (Inversion(), Judge(samples=8, steps=1000)),
        "ode": (Inversion(steps=100, scale=1.0, family="ode"), Judge(samples=8, steps=100)),
    },
}
"""Budget and family to the inversion and to what draws 16 samples. 100 noises, 100 steps, 1000 steps of
DDPM, and 10 steps and 50 of DDIM for an ODE backdoor, are the published code's; ``deep`` takes more of
the latter, the others fewer of what they name."""


@dataclass(frozen=True)
class Elijah:
    """Inverts at the last timestep, draws 16 samples, and compares two features with reference models.

    An et al.: Elijah: Eliminating Backdoors Injected in Diffusion Models via Distribution Shift, AAAI
    2024, arXiv 2312.00050. The features, of :mod:`backdrift.detection._uniform`, are taken from samples
    with the inverted trigger; low is suspicious in both. Given reference models (the calibration, where it
    has features for these settings) it decides as the paper does: by a threshold for each feature, set on
    the clean ones at a fixed false-positive rate, or by a random forest fitted on clean and backdoored
    ones.

    Deviations. The published code is told the sampler family of the attack, and sets the scale of the
    inversion by it; here each family is a hypothesis with features of its own. It is also told how
    TrojDiff draws (its true mean and scale of noise); nothing is told here, samples start from noise
    plus the inverted trigger, and a backdoor with a sampler of its own may not fire. Chains are shorter
    than 1000 steps but for ``deep``, and corrected for it (:class:`backdrift.detection._judge.Judge`).
    The perceptual distance is LPIPS with AlexNet where the user gives its weights (published: VGG16),
    else ``random-conv``; features over different distances are not comparable, so the settings name it.
    How the paper joins its two thresholds is not known to us; here one low feature suffices.

    Without references the score is ours: 1 less uniformity over that of plain samples of the same seeds.
    Total variation says nothing by itself and is only reported. Both features clamp to the range of an
    image, as published: a clean model that a shift drives to saturation looks uniform.

    It sees the model alone, and of the references their features and labels.

    Args:
        budget: sets inversion and chains.
        family: hypotheses to try.
        decision: how references decide; a forest needs backdoored ones among them.
        false_positive_rate: of a threshold, for each feature.
        lpips_weights: see :class:`backdrift.metrics.lpips.Lpips`; images of at least 32x32 pixels.
        calibration: a file of ``backdrift calibrate``, in place of the shipped one.

    Raises:
        ValueError: an unknown budget or family, a calibration of other settings, or a forest without
            backdoored references.
    """

    budget: str = "standard"
    family: Literal["both", "sde", "ode"] = "both"
    decision: Literal["thresholds", "forest"] = "thresholds"
    false_positive_rate: float = 0.05
    lpips_weights: Path | None = None
    calibration: Path | None = None

    def __post_init__(self) -> None:
        check_budget(self.budget)
        if not self._hypotheses():
            raise ValueError(f"unknown family {self.family!r}; known: both, sde, ode")
        if self.decision not in ("thresholds", "forest"):
            raise ValueError(f"unknown decision {self.decision!r}; known: thresholds, forest")
        if not 0 <= self.false_positive_rate < 1:
            raise ValueError(f"a false-positive rate lies in [0, 1), not at {self.false_positive_rate}")
        references = self._references()
        if self.decision == "forest" and (references is None or len(references.backdoored) < 2):
            raise ValueError("a forest needs references, and two backdoored models among them")

    def _hypotheses(self) -> dict[Solver, tuple[Inversion, Judge]]:
        parts = HYPOTHESES[self.budget]
        return {family: part for family, part in parts.items() if self.family in ("both", family)}

    def _table(self) -> CalibrationTable:
        return CalibrationTable.choose(self.calibration, "elijah", self.budget, self._measured())

    def _measured(self) -> dict[str, Any]:
        """Settings of what measures the features: those of the default decision."""
        return self.settings() | {"decision": "thresholds", "false_positive_rate": 0.05}

    def _references(self) -> References | None:
        return References.of(self._table(), "elijah", self.budget, self._measured())

    def settings(self) -> dict[str, Any]:
        """See :class:`backdrift.detection._base.Detector`; no path of a file is in it.

        A calibration carries the hash of those with the default decision.
        """
        parts = {
            family: {"inversion": asdict(inversion), "judge": asdict(judge)}
            for family, (inversion, judge) in self._hypotheses().items()
        }
        return {
            "version": 1,
            "budget": self.budget,
            "distance": Lpips.name if self.lpips_weights else RandomConv.name,
            "hypotheses": parts,
            "decision": self.decision,
            "false_positive_rate": self.false_positive_rate,
        }

    def most_evaluations(self) -> int:
        """What the budget costs at most: inversion, plain and triggered samples and a null a family."""
        parts = self._hypotheses().values()
        draws = 2 + len(NULLS)
        return sum(inversion.cost + draws * judge.cost for inversion, judge in parts) + RESPONSE_COST

    def features(self, finding: Finding) -> dict[str, float]:
        """The features of a finding of this detector, for a table of references.

        Raises:
            ValueError: the model drew numbers that are not finite, so there are none.
        """
        names = [name for family in self._hypotheses() for name in _names(family)]
        found = {score.name: score.value for score in finding.scores if score.name in names}
        kept = {name: value for name, value in found.items() if value is not None}
        if len(kept) < len(names):
            raise ValueError(f"this finding of {finding.detector} has no features")
        return kept

    def rescored(self, clean: Sequence[Mapping[str, float]], features: Mapping[str, float]) -> float:
        """The score of features against those of clean models: see :func:`by_thresholds`."""
        return share_below(clean, features)

    def threshold_over(self, clean: int) -> float:
        """The threshold of such scores, over that many clean models."""
        return share_at(clean)

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        progress: Progress | None = None,
        keep: Keep | None = None,
    ) -> Detection:
        """See :class:`backdrift.detection._base.Detector`."""
        case = Case(model, "elijah", self.budget, self.settings(), seed, self._table(), keep)
        distance = pair_distance(model.image_shape[0], self.lpips_weights)
        with model.frozen():
            looks = [
                _Look.at(case, *parts, distance, derive_seed(seed, "elijah", family), progress)
                for family, parts in self._hypotheses().items()
            ]
        features = {name: value for look in looks for name, value in look.features.items()}
        looks.sort(key=lambda look: -look.collapse)
        ranked = [(look.collapse, look.trial.candidate) for look in looks]
        return conclude(case, looks[0].trial, ranked, self._rule(case, looks[0], features, distance.name))

    def _rule(self, case: Case, best: _Look, features: dict[str, float], distance: str) -> Ruling:
        references, collapse = self._references(), best.collapse
        if not best.trial.draws_images or not all(map(math.isfinite, features.values())):
            reason = "the model does not draw images, with the inverted trigger or without"
            scores = _scores(features, {}, distance)
            return Ruling(Verdict.INCONCLUSIVE, collapse, UNCALIBRATED_THRESHOLD, reason, None, scores)
        if references is not None:
            return self._by_references(case.model, features, references, distance)
        calibration = case.calibration
        threshold = UNCALIBRATED_THRESHOLD if calibration is None else calibration.threshold
        return Ruling(
            verdict_of(collapse, threshold),
            collapse,
            threshold,
            f"samples with the inverted trigger are {1 - collapse:.0%} as varied as those without it",
            calibration,
            _scores(features, {}, distance),
        )

    def _by_references(
        self, model: DiffusionModel, features: dict[str, float], references: References, distance: str
    ) -> Ruling:
        if self.decision == "forest":
            decision = by_forest(references, features)
            said = (
                f"{decision.score:.0%} of a forest fitted on {len(references.rows)} models say backdoored"
            )
        else:
            decision = by_thresholds(references, features, self.false_positive_rate)
            said = (
                f"a feature is lower than in {decision.score:.0%} of {len(references.clean)} clean models"
            )
        return Ruling(
            Verdict.BACKDOORED if decision.flagged else Verdict.NO_EVIDENCE,
            decision.score,
            decision.threshold,
            said,
            decision.calibration(references, model),
            _scores(features, decision.cuts, distance),
        )


def _names(family: Solver) -> tuple[str, str]:
    return f"uniformity, {family}", f"total variation, {family}"


@dataclass(frozen=True, eq=False)
class _Look:
    """One hypothesis: what was inverted under it, what that draws, and how uniform that is."""

    trial: Trial
    features: dict[str, float]
    collapse: float

    @classmethod
    def at(
        cls,
        case: Case,
        inversion: Inversion,
        judge: Judge,
        distance: PairDistance,
        seed: int,
        progress: Progress | None,
    ) -> _Look:
        start, model = None, case.model
        if inversion.family == "ode":
            start = 2 * torch.rand(model.sample_shape, generator=generator(seed, "elijah", "start")) - 1
        candidate = inversion(model, seed=seed, start=start, progress=progress)[0]
        case.found(f"inversion, {inversion.family.upper()}", [(UNSCREENED, candidate)])
        judge = replace(judge, steps=min(judge.steps, len(model.schedule)))
        final, told = derive_seed(seed, "final"), partial(case.judging, [(UNSCREENED, candidate)])
        trial = Trial.hold(model, judge, candidate, NULLS, final, progress, told)
        drawn, plain = trial.drawn.samples, trial.clean.samples
        spread, usual = uniformity(distance(drawn)), uniformity(distance(plain))
        collapse = 1 - spread / max(usual, 1e-9)
        names = _names(inversion.family)
        features = dict(zip(names, (spread, total_variation(drawn)), strict=True))
        return cls(trial, features, min(1.0, max(-1.0, collapse)) if math.isfinite(collapse) else 0.0)


def _scores(features: dict[str, float], cuts: dict[str, float], distance: str) -> tuple[Score, ...]:
    meanings = {
        "uniformity": f"trimmed mean distance ({distance}) between samples with the inverted trigger",
        "total variation": "mean sum of differences between neighbouring pixels in [0, 1] of those samples",
    }
    return tuple(
        Score(
            name=name,
            value=value if math.isfinite(value) else None,
            meaning=meanings[name.split(",")[0]],
            threshold=cuts.get(name),
            suspicious_when="low",
        )
        for name, value in features.items()
    )
