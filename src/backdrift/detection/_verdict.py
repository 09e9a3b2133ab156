"""From one candidate to a finding: fresh samples, nulls, statistics, verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.results import Curve, Evidence, Finding, Null, Restart, Score, Verdict
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import unit
from backdrift.detection._base import (
    Detection,
    Progress,
    array_hash,
    calibrated,
    to_array,
    verdict_of,
)
from backdrift.detection._judge import Drawn, Judge, distance, null_shift
from backdrift.inversion._base import FAMILY_SAMPLER, Candidate, cosine

UNCALIBRATED_THRESHOLD = 0.5
"""Used where no calibration exists: half of the fresh samples are one image, and no null does it."""

SHOWN_SAMPLES = 16


@dataclass(frozen=True)
class NullRate:
    """What a null drew.

    Args:
        on_target: share of its fresh samples that hit the candidate's target.
        elsewhere: share that hit a target of the null's own, 0 when that is the candidate's.
    """

    on_target: float
    elsewhere: float


@dataclass(frozen=True, eq=False)
class Trial:
    """A frozen candidate, judged on fresh seeds beside its nulls.

    Args:
        clean: samples of the same seeds without any shift.
        drawn: samples with the candidate's shift.
        nulls: by name.
    """

    judge: Judge
    candidate: Candidate
    clean: Drawn
    drawn: Drawn
    nulls: dict[str, NullRate]

    @classmethod
    def hold(
        cls,
        model: DiffusionModel,
        judge: Judge,
        candidate: Candidate,
        nulls: tuple[str, ...],
        seed: int,
        progress: Progress | None = None,
    ) -> Trial:
        """Draws everything; ``(2 + len(nulls)) * judge.cost`` evaluations."""
        family = candidate.family
        plain = judge.draw(model, None, family, seed)
        drawn = judge.judge(judge.draw(model, candidate.shift, family, seed), plain)
        rates = {}
        for number, name in enumerate(nulls):
            shift = null_shift(name, candidate.shift, seed)
            null = judge.judge(judge.draw(model, shift, family, seed), plain)
            same = bool(distance(null.target[None], drawn.target) < drawn.threshold)
            near = distance(null.samples[judge.samples :], drawn.target) < drawn.threshold
            on_target = float(near.float().mean())
            rates[name] = NullRate(on_target, 0.0 if same else null.hit_rate)
            if progress is not None:
                progress(number + 1, len(nulls), f"null: {name}")
        return cls(judge, candidate, judge.judge(plain, plain), drawn, rates)

    @property
    def draws_images(self) -> bool:
        """Whether plain samples are images: at least half of the values within [-1.5, 1.5]."""
        return bool((self.clean.samples.abs() <= 1.5).float().mean() >= 0.5)

    @property
    def background(self) -> float:
        """What is usual, in [0, 1]: the largest of three rates.

        Plain samples on the target; what *every* null reaches on the target; the mean over the nulls
        of a collapse elsewhere. A null alone on the target does not count: a shift orthogonal to the
        trigger may set the same backdoor off (low-frequency and constant ones did on an ODE model),
        while a model that is merely driven out of its distribution answers most shifts alike.
        """
        nulls = list(self.nulls.values())
        if not nulls:
            return self.drawn.plain_rate
        everywhere = min(null.on_target for null in nulls)
        elsewhere = sum(null.elsewhere for null in nulls) / len(nulls)
        return max(self.drawn.plain_rate, everywhere, elsewhere)

    @property
    def score(self) -> float:
        """Hit rate of the candidate less :attr:`background`, in [-1, 1]."""
        return self.drawn.hit_rate - self.background


def screen(
    model: DiffusionModel, judge: Judge, candidates: tuple[Candidate, ...], seed: int
) -> list[tuple[float, Candidate]]:
    """A short look at what each candidate draws: (score, candidate with its target), best first.

    The score is the hit rate less the pixel variance over that of plain samples, in [-1, 1]. Costs
    ``judge.cost`` per candidate and once more per family.
    """
    plain: dict[str, Tensor] = {}
    looked = []
    for candidate in candidates:
        family = candidate.family
        if family not in plain:
            plain[family] = judge.draw(model, None, family, seed)
        drawn = judge.judge(judge.draw(model, candidate.shift, family, seed), plain[family])
        usual = max(judge.judge(plain[family], plain[family]).spread, 1e-9)
        score = drawn.hit_rate - min(1.0, drawn.spread / usual)
        looked.append((score, replace(candidate, target=drawn.target)))
    return sorted(looked, key=lambda item: -item[0])


def conclude(
    model: DiffusionModel,
    trial: Trial,
    *,
    detector: str,
    budget: str,
    config: dict[str, Any],
    seed: int,
    restarts: list[tuple[float, Candidate]],
    evaluations: int,
    seconds: float,
) -> Detection:
    """The finding and its evidence.

    Args:
        restarts: every candidate with its screening score, the best first.
    """
    calibration = calibrated(detector, budget, model)
    threshold = UNCALIBRATED_THRESHOLD if calibration is None else calibration.threshold
    verdict, reason = _decide(trial, threshold)
    candidate = trial.candidate
    shift, consistency = _response(model, trial, seed)
    trigger, target = to_array(candidate.shift), to_array(trial.drawn.target)
    finding = Finding(
        detector=detector,
        weights=model.origin.weights,
        verdict=verdict,
        score=trial.score,
        threshold=threshold,
        reason=reason,
        config=config,
        seed=seed,
        scores=_scores(trial, consistency),
        nulls=[
            Null(name=name, score=max(rate.on_target, rate.elsewhere)) for name, rate in trial.nulls.items()
        ],
        curves=[shift, _course(candidate)],
        restarts=[_restart(score, c, candidate) for score, c in restarts],
        agreement=_agreement([c for _, c in restarts]),
        calibration=calibration,
        trigger_sha256=array_hash(trigger),
        target_sha256=array_hash(target),
        evaluations=evaluations,
        seconds=seconds,
    )
    evidence = Evidence(
        weights=model.origin.weights,
        trigger=trigger,
        target=target,
        clean_samples=to_array(trial.clean.samples[-SHOWN_SAMPLES:]),
        triggered_samples=to_array(trial.drawn.samples[-SHOWN_SAMPLES:]),
        sampler=f"{FAMILY_SAMPLER[candidate.family]}, {trial.judge.steps} steps",
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


def _scores(trial: Trial, consistency: float) -> list[Score]:
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
            meaning="MSE in [0, 1] units that a hit stays below: 5% quantile of plain samples, .01 to .05",
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
def _response(model: DiffusionModel, trial: Trial, seed: int) -> tuple[Curve, float]:
    """Measured shift scale over timesteps beside C_t, and the corrected consistency."""
    candidate, y = trial.candidate, trial.drawn.target
    family = ShiftFamily.of(model.schedule, "baddiffusion", candidate.family)
    tau = candidate.shift
    last = len(model.schedule) - 1
    timesteps = sorted({round(last * k / 10) for k in range(1, 11)})
    noise = SampleGenerator(seed, 8, "response").normal(model.sample_shape, model.device)
    noise = torch.cat([noise, -noise])
    measured, errors = [], []
    for t in timesteps:
        x_t, _ = family.poisoned_pair(
            model.schedule, y.expand_as(noise), tau.expand_as(noise), noise, torch.tensor(t)
        )
        predicted = model(x_t, t)
        measured.append(float((predicted.mean(0) * tau).sum() / (tau * tau).sum().clamp_min(1e-12)))
        a, s = float(model.schedule.alpha[t]), float(model.schedule.sigma[t])
        rho, c = float(family.rho[t]), float(family.c[t])
        if a >= 0.1:
            x_0 = (x_t - rho * tau - s * (predicted - c * tau)) / a
            errors.append(((unit(x_0) - unit(y)) ** 2).mean())
    curve = Curve(
        name="shift scale",
        x_label="timestep",
        y_label="<mean predicted noise, trigger> / ||trigger||^2",
        x=[float(t) for t in timesteps],
        y=measured,
        reference=[float(family.c[t]) for t in timesteps],
        reference_label=f"theory for a backdoor of {family.name}",
    )
    return curve, float(torch.stack(errors).mean())


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
