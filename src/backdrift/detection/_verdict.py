"""From a trial to a finding: statistics, calibration, verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed
from backdrift.core.results import Calibration, Curve, Finding, Score, Verdict
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import unit
from backdrift.detection._base import Detection, Progress, array_hash, verdict_of
from backdrift.detection._case import (
    UNSCREENED,
    Case,
    Ranked,
    agreement,
    evidence_of,
    nulls_of,
    restarts_of,
    scores_of,
)
from backdrift.detection._judge import Judge, overshoot
from backdrift.detection._trial import Trial, screen
from backdrift.inversion._base import Candidate, Inversion, antithetic_noise

UNCALIBRATED_THRESHOLD = 0.5
"""Used where no calibration exists: half of the fresh samples are one image, and no null does it."""

RESPONSE_TIMESTEPS, RESPONSE_NOISES = 10, 8
RESPONSE_COST = RESPONSE_TIMESTEPS * RESPONSE_NOISES
"""Network evaluations of the shift-scale curve that every report has."""


@dataclass(frozen=True)
class Ruling:
    """What is decided, and from what.

    Args:
        score: in [-1, 1], higher is more suspicious.
        reason: one line.
        scores: statistics of the method's own, shown before those of every method.
    """

    verdict: Verdict
    score: float
    threshold: float
    reason: str
    calibration: Calibration | None = None
    scores: tuple[Score, ...] = ()


def conclude(case: Case, trial: Trial, ranked: Ranked, ruling: Ruling | None = None) -> Detection:
    """The finding and its evidence.

    Args:
        ranked: every candidate with its screening score, the best first.
        ruling: of a method that decides by something else than what its trigger draws.
    """
    if ruling is None:
        calibration = case.calibration
        threshold = UNCALIBRATED_THRESHOLD if calibration is None else calibration.threshold
        verdict, reason = _decide(trial, threshold)
        ruling = Ruling(verdict, trial.score, threshold, reason, calibration)
    candidate, evidence = trial.candidate, evidence_of(case.model, trial)
    shift, consistency = _response(case.model, trial, case.seed)
    assert evidence.target is not None
    finding = Finding(
        detector=case.detector,
        weights=evidence.weights,
        verdict=ruling.verdict,
        score=ruling.score,
        threshold=ruling.threshold,
        reason=ruling.reason,
        config=case.config,
        seed=case.seed,
        scores=[*ruling.scores, *scores_of(trial, consistency)],
        nulls=nulls_of(trial),
        curves=[shift, _course(candidate)],
        restarts=restarts_of(ranked, candidate),
        agreement=agreement(ranked),
        calibration=ruling.calibration,
        trigger_sha256=array_hash(evidence.trigger),
        target_sha256=array_hash(evidence.target),
        evaluations=case.meter.evaluations,
        seconds=case.meter.seconds,
    )
    return Detection(finding, evidence)


def _decide(trial: Trial, threshold: float) -> tuple[Verdict, str]:
    hits, usual = trial.drawn.hit_rate, trial.background
    said = f"{hits:.0%} of fresh samples with the inverted trigger hit one image"
    if not trial.draws_images:
        return Verdict.INCONCLUSIVE, "the model does not draw images even from plain noise"
    if hits >= threshold and trial.own:
        return Verdict.INCONCLUSIVE, f"{said}, but it is like the model's own, and the trigger points at it"
    if hits >= threshold and trial.score < threshold:
        return Verdict.INCONCLUSIVE, f"{said}, but so do {usual:.0%} without it or with others"
    return verdict_of(trial.score, threshold), f"{said}; without it or with other shifts {usual:.0%}"


@torch.no_grad()
def _response(model: DiffusionModel, trial: Trial, seed: int) -> tuple[Curve, float | None]:
    """Measured shift scale over timesteps beside C_t, and the corrected consistency."""
    candidate, y = trial.candidate, trial.target
    family = ShiftFamily.of(model.schedule, "baddiffusion", candidate.family)
    if candidate.scale is not None:
        family = ShiftFamily.biased(model.schedule, 1.0)
    tau, gamma = candidate.shift, 1.0 if candidate.scale is None else candidate.scale
    last = len(model.schedule) - 1
    count = RESPONSE_TIMESTEPS
    timesteps = sorted({round(last * k / count) for k in range(1, count + 1)})
    noise = antithetic_noise(model, RESPONSE_NOISES, seed, "response")
    measured, errors = [], []
    for t in timesteps:
        x_t, _ = family.poisoned_pair(
            model.schedule, y.expand_as(noise), tau.expand_as(noise), noise, torch.tensor(t), gamma
        )
        predicted = model(x_t, t)
        measured.append(float((predicted.mean(0) * tau).sum() / (tau * tau).sum().clamp_min(1e-12)))
        a, s = float(model.schedule.alpha[t]), float(model.schedule.sigma[t])
        rho, c = float(family.rho[t]), float(family.c[t])
        if a >= 0.1:
            x_0 = (x_t - rho * tau - s * gamma * (predicted - c * tau)) / a
            error = ((unit(model.decode(x_0)) - unit(trial.drawn.target)) ** 2).mean()
            beyond = overshoot(model, x_0)
            errors.append(error if beyond is None else error + beyond.mean())
    curve = Curve(
        name="shift scale",
        x_label="timestep",
        y_label="<mean predicted noise, trigger> / ||trigger||^2",
        x=[float(t) for t in timesteps],
        y=measured,
        reference=[float(family.c[t]) for t in timesteps],
        reference_label=f"theory for a backdoor of {family.name}",
    )
    return curve, float(torch.stack(errors).mean()) if errors else None


def _course(candidate: Candidate) -> Curve:
    return Curve(
        name="inversion",
        x_label="round",
        y_label="loss or gain",
        x=[float(k) for k in range(1, len(candidate.history) + 1)],
        y=list(candidate.history),
    )


def judge_inversion(
    case: Case,
    inversion: Inversion,
    *,
    look: Judge,
    judge: Judge,
    nulls: tuple[str, ...],
    progress: Progress | None = None,
) -> Detection:
    """Any inversion as a detector: screen its candidates, judge the best on fresh seeds."""
    model, seed = case.model, case.seed
    with model.frozen():
        found = inversion(model, seed=seed, progress=progress)
        case.found("inversion", [(UNSCREENED, candidate) for candidate in found])
        ranked = screen(model, look, found, derive_seed(seed, "screen"), aimed=True)
        case.found("screening", ranked)
        final, told = derive_seed(seed, "final"), partial(case.judging, ranked)
        trial = Trial.hold(model, judge, ranked[0][1], nulls, final, progress, told)
    return conclude(case, trial, ranked)
