"""Backdrift's own detector: invert by iteration, refine jointly, judge on fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed
from backdrift.detection._base import Detection, Keep, Meter, Progress, check_budget
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._case import UNSCREENED, Case
from backdrift.detection._nulls import AIMED
from backdrift.detection._stages import INGREDIENTS, STAGES, Stages
from backdrift.detection._trial import Trial, screen
from backdrift.detection._verdict import conclude
from backdrift.inversion._base import Candidate, cosine
from backdrift.inversion.joint import SOFTER

ALIKE = 0.9
"""Cosine from which on only one of two shifts of a search is refined."""
LONGER = 1.25
"""Norm over norm from which on two shifts of one direction are tried apart."""


@dataclass(frozen=True)
class Backdrift:
    """Search, refine by gradient, judge what is drawn.

    Ours. :class:`backdrift.inversion.fixed_point.FixedPoint` and
    :class:`backdrift.inversion.outliers.Outliers` look for backdoors of SDE samplers,
    :class:`backdrift.inversion.opposition.Opposition` and :class:`backdrift.inversion.novelty.Novelty`
    for those of ODE samplers, :class:`backdrift.inversion.noise_scale.NoiseScale` for TrojDiff's. All
    candidates are screened by a few samples, the best of them a second time; the best of each kind are
    refined by :class:`backdrift.inversion.joint.Joint`; the best of all is frozen, and on fresh seeds its
    samples are compared with plain ones and with those of other shifts of the same norm. Where that is
    not enough the next best is tried as well. The score is the share of fresh samples that hit the
    recovered target, less what plain noise and the nulls do (:attr:`Trial.background`), in [-1, 1].

    It sees the model alone: no data, no trigger, target, attack name or poison rate.

    Args:
        budget: ``quick``, ``standard`` or ``deep``; sets every stage.
        calibration: a file of ``backdrift calibrate``, in place of the shipped one.
        without: names of ``INGREDIENTS`` to leave out, for ablations.

    Raises:
        ValueError: unknown budget or ingredient, or a calibration of other settings.
    """

    budget: str = "standard"
    calibration: Path | None = None
    without: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """See :class:`backdrift.detection._base.Detector`."""
        return {"version": 6, "budget": self.budget, "stages": asdict(self._stages())}

    def most_evaluations(self) -> int:
        """What the budget's stages cost at most."""
        return self._stages().cost

    def __post_init__(self) -> None:
        check_budget(self.budget)
        for name in self.without:
            if name not in INGREDIENTS:
                raise ValueError(f"unknown ingredient {name!r}; known: {', '.join(INGREDIENTS)}")
        self._table()

    def _table(self) -> CalibrationTable:
        return CalibrationTable.choose(self.calibration, "backdrift", self.budget, self.settings())

    def _stages(self) -> Stages:
        stages = STAGES[self.budget]
        for name in self.without:
            stages = INGREDIENTS[name](stages)
        return stages

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        progress: Progress | None = None,
        keep: Keep | None = None,
    ) -> Detection:
        """See :class:`backdrift.detection._base.Detector`."""
        stages = self._stages()
        case = Case(model, "backdrift", self.budget, self.settings(), seed, self._table(), keep)
        shown = _Steps(progress, stages.cost, case.meter)
        with model.frozen():
            found = [stages.search(model, seed=seed, progress=shown)]
            case.found("search for SDE backdoors", _unranked(found))
            found[0] += stages.outliers(model, seed=seed, progress=shown)
            case.found("search for SDE backdoors in loud noise", _unranked(found))
            found.append(stages.against(model, seed=seed, progress=shown))
            case.found("search for ODE backdoors by opposition", _unranked(found))
            found.append(() if stages.novel is None else stages.novel(model, seed=seed, progress=shown))
            case.found("search for ODE backdoors by novelty", _unranked(found))
            if stages.scaled is not None:
                scaled = stages.scaled(model, seed=seed, progress=shown)
                found.append(tuple(c for c in scaled if _least(c) < stages.below))
                case.found("search for backdoors with a noise scale", _unranked(found))
            ranked = _rank(case, stages, found, shown)
            trial = _try(case, stages, ranked, shown)
        shown(1, 1, "done")
        return conclude(case, trial, ranked)


class _Steps:
    """Progress in evaluations spent, whatever the stage counts in."""

    def __init__(self, progress: Progress | None, total: int, meter: Meter) -> None:
        self.progress, self.total, self.meter = progress, total, meter

    def __call__(self, done: int, total: int, text: str) -> None:
        if self.progress is not None:
            spent = self.total if text == "done" else min(self.meter.evaluations, self.total)
            self.progress(spent, self.total, text)


def _least(found: Candidate) -> float:
    return 1.0 if found.scale is None else float(found.scale.min())


def _worth(looked: tuple[float, Candidate]) -> float:
    """Smaller is better. What implies no image, or obeys no backdoor, has a gain below 0."""
    score, candidate = looked
    return -score - min(0.0, candidate.gain)


def _apart(ranked: list[Candidate], number: int, longer: float = math.inf) -> list[Candidate]:
    """The first that differ in direction, or of which one is ``longer`` times as long as the other."""
    chosen: list[Candidate] = []
    for one in ranked:
        alike = [c.norm for c in chosen if cosine(one.shift, c.shift) >= ALIKE]
        if len(chosen) < number and all(max(n / one.norm, one.norm / n) > longer for n in alike):
            chosen.append(one)
    return chosen


def _unranked(found: Sequence[Sequence[Candidate]]) -> list[tuple[float, Candidate]]:
    return [(UNSCREENED, candidate) for part in found for candidate in part]


def _rank(
    case: Case, stages: Stages, found: list[tuple[Candidate, ...]], progress: Progress
) -> list[tuple[float, Candidate]]:
    """Screened candidates and their refinements, the best first."""
    model, seed = case.model, case.seed
    look, aimed = derive_seed(seed, "screen"), any(name in AIMED for name in stages.nulls)
    looked = screen(model, stages.screen, tuple(c for part in found for c in part), look, aimed=aimed)
    looked.sort(key=_worth)
    finalists = tuple(c for score, c in looked[: stages.finalists] if score > stages.hopeless)
    rest = [item for item in looked if item[1] not in finalists]
    looked = screen(model, stages.closer, finalists, derive_seed(seed, "finalists"), aimed=aimed) + rest
    looked.sort(key=_worth)
    progress(0, 0, "screened")
    case.found("screening", looked)
    begun = []
    for part, number in zip(found, stages.refined, strict=False):
        mine = {c.start for c in part}
        begun += _apart([c for _, c in looked if c.start in mine], number)
    scaled = [c for score, c in looked if c.scale is not None and score > stages.hopeless]
    begun += scaled[:1] if begun else []
    refined = list[Candidate]()
    for candidate in begun:
        better = stages.refine.refine(model, candidate, seed=seed, progress=progress)
        refined.append(replace(better, start=f"{candidate.start}, refined"))
        case.found(f"refinement of {candidate.start}", looked + _unranked([refined]))
    refined += [replace(c, shift=SOFTER * c.shift, start=f"{c.start}, {SOFTER:g} of it") for c in refined]
    looked += screen(model, stages.closer, tuple(refined), derive_seed(seed, "refined"), aimed=aimed)
    ranked = sorted(looked, key=_worth)
    case.found("screening of refined triggers", ranked)
    return ranked


def _try(case: Case, stages: Stages, ranked: list[tuple[float, Candidate]], progress: Progress) -> Trial:
    """Trials of the best candidates, each on seeds of its own, up to the first that is ``enough``."""
    promising = ranked[:1] + [item for item in ranked[1:] if -_worth(item) > stages.promising]
    held: list[Trial] = []
    for number, candidate in enumerate(_apart([c for _, c in promising], stages.trials, LONGER)):
        final, told = derive_seed(case.seed, "final", number), partial(case.judging, ranked)
        held.append(Trial.hold(case.model, stages.judge, candidate, stages.nulls, final, progress, told))
        if held[-1].score >= stages.enough:
            break
    return max(held, key=lambda t: (t.score >= stages.enough, t.drawn.hit_rate >= stages.enough, t.score))
