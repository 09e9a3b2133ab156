"""From a trial to a finding: statistics, calibration, verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed
from backdrift.core.results import (
    Calibration,
    Curve,
    Evidence,
    Finding,
    Null,
    Restart,
    Score,
    Verdict,
)
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import unit
from backdrift.detection._base import (
    Detection,
    Meter,
    Progress,
    array_hash,
    to_array,
    verdict_of,
)
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._judge import Judge, overshoot
from backdrift.detection._trial import Trial, screen
from backdrift.inversion._base import FAMILY_SAMPLER, Candidate, Inversion, antithetic_noise, cosine

UNCALIBRATED_THRESHOLD = 0.5
"""Used where no calibration exists: half of the fresh samples are one image, and no null does it."""

SHOWN_SAMPLES = 16
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


def conclude(
    model: DiffusionModel,
    trial: Trial,
    *,
    detector: str,
    budget: str,
    config: dict[str, Any],
    seed: int,
    restarts: list[tuple[float, Candidate]],
    meter: Meter,
    table: CalibrationTable,
    ruling: Ruling | None = None,
) -> Detection:
    """The finding and its evidence.

    Args:
        restarts: every candidate with its screening score, the best first.
        meter: started when the detector was.
        table: where the threshold is looked up.
        ruling: of a method that decides by something else than what its trigger draws.
    """
    if ruling is None:
        calibration = table.of(detector, budget, config, model)
        threshold = UNCALIBRATED_THRESHOLD if calibration is None else calibration.threshold
        verdict, reason = _decide(trial, threshold)
        ruling = Ruling(verdict, trial.score, threshold, reason, calibration)
    candidate = trial.candidate
    shift, consistency = _response(model, trial, seed)
    trigger, target = to_array(candidate.shift), to_array(trial.drawn.target)
    finding = Finding(
        detector=detector,
        weights=model.origin.weights,
        verdict=ruling.verdict,
        score=ruling.score,
        threshold=ruling.threshold,
        reason=ruling.reason,
        config=config,
        seed=seed,
        scores=[*ruling.scores, *_scores(trial, consistency)],
        nulls=[
            Null(name=name, score=max(rate.on_target, rate.elsewhere)) for name, rate in trial.nulls.items()
        ],
        curves=[shift, _course(candidate)],
        restarts=[_restart(score, c, candidate) for score, c in restarts],
        agreement=_agreement([c for _, c in restarts]),
        calibration=ruling.calibration,
        trigger_sha256=array_hash(trigger),
        target_sha256=array_hash(target),
        evaluations=meter.evaluations,
        seconds=meter.seconds,
    )
    biased = "" if candidate.scale is None else "biased "
    evidence = Evidence(
        weights=model.origin.weights,
        trigger=trigger,
        target=target,
        clean_samples=to_array(trial.clean.samples[-SHOWN_SAMPLES:]),
        triggered_samples=to_array(trial.drawn.samples[-SHOWN_SAMPLES:]),
        sampler=f"{biased}{FAMILY_SAMPLER[candidate.family]}, {trial.judge.steps} steps",
        scale=None if candidate.scale is None else to_array(candidate.scale),
    )
    return Detection(finding, evidence)


def _decide(trial: Trial, threshold: float) -> tuple[Verdict, str]:
    hits, usual = trial.drawn.hit_rate, trial.background
    said = f"{hits:.0%} of fresh samples with the inverted trigger hit one image"
    if not trial.draws_images:
        return Verdict.INCONCLUSIVE, "the model does not draw images even from plain noise"
    if hits >= threshold and trial.score < threshold:
        return Verdict.INCONCLUSIVE, f"{said}, but so do {usual:.0%} without it or with others"
    return verdict_of(trial.score, threshold), f"{said}; without it or with other shifts {usual:.0%}"


def _scores(trial: Trial, consistency: float | None) -> list[Score]:
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


def _restart(score: float, candidate: Candidate, kept: Candidate) -> Restart:
    return Restart(
        name=candidate.start,
        family=candidate.family,
        norm=candidate.norm,
        gain=candidate.gain,
        score=score if score > float("-inf") else None,
        kept=candidate is kept,
    )


def _agreement(candidates: list[Candidate]) -> list[list[float]]:
    shifts: list[Tensor] = [c.shift for c in candidates]
    return [[cosine(a, b) for b in shifts] for a in shifts]


def judge_inversion(
    model: DiffusionModel,
    inversion: Inversion,
    *,
    look: Judge,
    judge: Judge,
    nulls: tuple[str, ...],
    detector: str,
    budget: str,
    config: dict[str, Any],
    seed: int,
    table: CalibrationTable,
    progress: Progress | None = None,
) -> Detection:
    """Any inversion as a detector: screen its candidates, judge the best on fresh seeds."""
    meter = Meter(model)
    with model.frozen():
        found = inversion(model, seed=seed, progress=progress)
        ranked = screen(model, look, found, derive_seed(seed, "screen"), aimed=True)
        final = derive_seed(seed, "final")
        trial = Trial.hold(model, judge, ranked[0][1], nulls, final, progress)
    return conclude(
        model,
        trial,
        detector=detector,
        budget=budget,
        config=config,
        seed=seed,
        restarts=ranked,
        meter=meter,
        table=table,
    )
