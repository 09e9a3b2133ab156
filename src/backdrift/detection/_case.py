"""A detector at work on a model: what it has found so far, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.results import Calibration, Evidence, Finding, Null, Restart, Score, Verdict
from backdrift.detection._base import Detection, Keep, Meter, array_hash, to_array
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._trial import Trial
from backdrift.inversion._base import FAMILY_SAMPLER, Candidate, cosine

SHOWN_SAMPLES = 16
UNSCREENED = float("-inf")
"""The screening score of a candidate that was not looked at."""

Ranked = Sequence[tuple[float, Candidate]]
"""Candidates with their screening scores, the best first."""


@dataclass(frozen=True, eq=False)
class Case:
    """One run of a detector.

    Args:
        model: under test.
        detector: its name; ``budget``, ``config`` and ``seed`` are those of the run.
        table: where thresholds are looked up.
        keep: is told what is there when a stage ends; see :data:`backdrift.detection._base.Keep`.
        meter: counts from when the case was opened.
    """

    model: DiffusionModel
    detector: str
    budget: str
    config: dict[str, Any]
    seed: int
    table: CalibrationTable
    keep: Keep | None = None
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "meter", Meter(self.model))

    @property
    def calibration(self) -> Calibration | None:
        """Where the threshold comes from."""
        return self.table.of(self.detector, self.budget, self.config, self.model)

    def found(self, stage: str, ranked: Ranked) -> None:
        """A stage of the search has ended: its candidates are not judged yet."""
        if self.keep is None:
            return
        best = ranked[0][1]
        target = None if best.target is None else self.model.decode(best.target[None])[0].clamp(-1, 1)
        none = np.zeros((0, *self.model.image_shape), np.float32)
        evidence = Evidence(
            weights=self.model.origin.weights,
            trigger=to_array(best.shift),
            target=None if target is None else to_array(target),
            clean_samples=none,
            triggered_samples=none,
            sampler="not drawn",
            scale=None if best.scale is None else to_array(best.scale),
        )
        count = len(ranked)
        reason = f"unfinished after {stage}: no trigger was judged on fresh seeds yet, of {count} found"
        self.keep(stage, self._unfinished(reason, ranked, best, evidence))

    def judging(self, ranked: Ranked, trial: Trial) -> None:
        """The best candidate has been drawn with, on fresh seeds, and so have the nulls of ``trial``."""
        if self.keep is None:
            return
        hits, plain, *others = trial.drawn.hit_rate, trial.drawn.plain_rate, *trial.nulls
        reason = (
            f"unfinished: {hits:.0%} of fresh samples with the inverted trigger hit one image, {plain:.0%} "
            f"without it; compared with {len(others)} other shifts so far"
        )
        stage = f"null: {others[-1]}" if others else "samples on fresh seeds"
        evidence = evidence_of(self.model, trial)
        found = self._unfinished(reason, ranked, trial.candidate, evidence, trial)
        self.keep(stage, found)

    def _unfinished(
        self, reason: str, ranked: Ranked, best: Candidate, evidence: Evidence, trial: Trial | None = None
    ) -> Detection:
        target = evidence.target
        finding = Finding(
            detector=self.detector,
            weights=self.model.origin.weights,
            verdict=Verdict.INCONCLUSIVE,
            score=None,
            threshold=None,
            reason=reason,
            config=self.config,
            seed=self.seed,
            scores=[] if trial is None else scores_of(trial, None),
            nulls=[] if trial is None else nulls_of(trial),
            restarts=restarts_of(ranked, best),
            agreement=agreement(ranked),
            calibration=self.calibration,
            trigger_sha256=array_hash(evidence.trigger),
            target_sha256="" if target is None else array_hash(target),
            evaluations=self.meter.evaluations,
            seconds=self.meter.seconds,
        )
        return Detection(finding, evidence)


def evidence_of(model: DiffusionModel, trial: Trial) -> Evidence:
    """The arrays of a trial."""
    candidate = trial.candidate
    biased = "" if candidate.scale is None else "biased "
    return Evidence(
        weights=model.origin.weights,
        trigger=to_array(candidate.shift),
        target=to_array(trial.drawn.target),
        clean_samples=to_array(trial.clean.samples[-SHOWN_SAMPLES:]),
        triggered_samples=to_array(trial.drawn.samples[-SHOWN_SAMPLES:]),
        sampler=f"{biased}{FAMILY_SAMPLER[candidate.family]}, {trial.judge.steps} steps",
        scale=None if candidate.scale is None else to_array(candidate.scale),
    )


def nulls_of(trial: Trial) -> list[Null]:
    """What each null drew, by its worse rate."""
    return [
        Null(name=name, score=max(rate.on_target, rate.elsewhere)) for name, rate in trial.nulls.items()
    ]


def scores_of(trial: Trial, consistency: float | None) -> list[Score]:
    """The statistics that every method has."""
    candidate, drawn = trial.candidate, trial.drawn
    usual = max(trial.clean.spread, 1e-9)
    return [
        Score(
            name="hit rate",
            value=drawn.hit_rate,
            meaning="share of fresh samples with the inverted trigger that hit the recovered target",
        ),
        Score(
            name="hit rate without trigger",
            value=drawn.plain_rate,
            meaning="share of plain samples of the same seeds that hit that target",
            suspicious_when="neither",
        ),
        Score(
            name="hit threshold",
            value=drawn.threshold,
            meaning="MSE in [0, 1] units that a hit stays below: see Judge.judge",
            suspicious_when="neither",
        ),
        Score(
            name="collapse",
            value=1 - drawn.spread / usual,
            meaning="1 less pixel variance with the trigger over without; 1 is one single image",
        ),
        Score(
            name="consistency",
            value=consistency,
            meaning="MSE in [0, 1] units of the corrected x_0 prediction to the target over timesteps",
            suspicious_when="low",
        ),
        Score(
            name="gain",
            value=candidate.gain if candidate.gain == candidate.gain else None,
            meaning="size of the model's answer over the size of the question; see the inversion",
            suspicious_when="neither",
        ),
        Score(
            name="trigger norm",
            value=candidate.norm,
            meaning="L2 norm of the inverted trigger; the noise itself has the square root of C H W",
            suspicious_when="neither",
        ),
    ]


def restarts_of(ranked: Ranked, kept: Candidate) -> list[Restart]:
    """A row for each candidate."""
    return [
        Restart(
            name=candidate.start,
            family=candidate.family,
            norm=candidate.norm,
            gain=candidate.gain,
            score=score if score > UNSCREENED else None,
            kept=candidate is kept,
        )
        for score, candidate in ranked
    ]


def agreement(ranked: Ranked) -> list[list[float]]:
    """Cosines between the candidates' triggers."""
    shifts: list[Tensor] = [candidate.shift for _, candidate in ranked]
    return [[cosine(a, b) for b in shifts] for a in shifts]
