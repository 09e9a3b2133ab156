"""Backdrift's own detector: invert by iteration, refine jointly, judge on fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed
from backdrift.detection._base import Detection, Keep, Meter, Progress, check_budget
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._case import UNSCREENED, Case
from backdrift.detection._judge import Judge
from backdrift.detection._nulls import AIMED, NULLS
from backdrift.detection._trial import Trial, screen
from backdrift.detection._verdict import RESPONSE_COST, conclude
from backdrift.inversion._base import Candidate, cosine
from backdrift.inversion.boundary import Boundary
from backdrift.inversion.fixed_point import FixedPoint
from backdrift.inversion.joint import Joint
from backdrift.inversion.noise_scale import NoiseScale
from backdrift.inversion.novelty import Novelty

ALIKE = 0.9
"""Cosine from which on only one of two shifts of a search is refined."""


@dataclass(frozen=True)
class Stages:
    """What a budget buys.

    Args:
        search: for SDE backdoors, from random directions.
        edge: for ODE backdoors, from the edge at which they half fire.
        novel: for ODE backdoors, from answers that are unlike the model's own images.
        screen: a short look at what a candidate draws.
        refine: from a candidate, by gradient.
        refined: how many candidates of ``search``, ``edge`` and ``novel`` are refined.
        judge: the final look, on fresh seeds.
        nulls: shifts to compare with, names of ``NULLS``.
        scaled: for backdoors that come with a noise scale of their own; the best that it finds is
            refined if anything is, and if its screening score is above ``hopeless``.
        below: a find of ``scaled`` counts if its smallest gamma lies below; clean models answer with
            gamma near 1.
        softer: the share of its norm at which a refined trigger with a noise scale is screened once
            more: refinement may end beyond the norm at which the backdoor fires.
    """

    search: FixedPoint
    edge: Boundary
    novel: Novelty | None
    screen: Judge
    refine: Joint
    refined: tuple[int, int, int]
    judge: Judge
    nulls: tuple[str, ...]
    scaled: NoiseScale | None = field(default_factory=NoiseScale)
    below: float = 0.85
    hopeless: float = -0.5
    softer: float = 0.75

    @property
    def closer(self) -> Judge:
        """The look at refined triggers with a noise scale: each is there at two norms."""
        return replace(self.screen, samples=2 * self.screen.samples)

    @property
    def cost(self) -> int:
        """The most network evaluations, all stages together."""
        plain, ode = sum(self.refined), len(self.edge.starts)
        cost = self.search.cost + self.edge.cost
        if self.novel is not None:
            ode += 2 * len(self.novel.starts)
            cost += self.novel.cost
        kinds = (self.refined[0] > 0) + (max(self.refined[1:]) > 0)
        screened = 2 + len(self.search.starts) + (2 + ode if ode else 0) + plain + 2 * kinds
        cost += screened * self.screen.cost + (2 + len(self.nulls)) * self.judge.cost
        cost += plain * self.refine.refine_cost + RESPONSE_COST
        if self.scaled is not None:
            cost += self.scaled.cost + (2 + self.scaled.kinds) * self.screen.cost
            if plain:
                cost += self.refine.refine_cost + 4 * self.closer.cost
        return cost


STAGES = {
    "quick": Stages(
        FixedPoint(18, rounds=7, norms=(0.3, 0.45), families=("sde",), deflations=1, tangents=(0.13,)),
        Boundary(starts=(-0.9,), noises=16, rounds=6, steps=3),
        Novelty(samples=48, steps=10, noises=32),
        Judge(samples=4, steps=10),
        Joint(steps=78, batch=8, learning_rate=0.08, warm_samples=0),
        (0, 1, 1),
        Judge(samples=8, steps=17),
        ("opposite", *AIMED),
    ),
    "standard": Stages(
        FixedPoint(40, norms=(0.3, 0.6, 0.9), families=("sde",), tangents=(0.1, 0.2)),
        Boundary(starts=(-0.9,)),
        Novelty(),
        Judge(samples=6, steps=20),
        Joint(steps=98, batch=16, learning_rate=0.04, warm_samples=0),
        (1, 1, 1),
        Judge(samples=20, steps=25),
        NULLS,
    ),
    "deep": Stages(
        FixedPoint(84, 12, (0.2, 0.3, 0.6, 0.9), ("sde",), deflations=3, tangents=(0.1, 0.2)),
        Boundary(starts=(-0.9, -0.6, 0.6, 0.9), noises=96),
        Novelty(samples=128, noises=96, norms=(0.15, 0.3, 0.6)),
        Judge(samples=8, steps=25),
        Joint(steps=240, batch=16, learning_rate=0.04, warm_samples=0),
        (2, 1, 2),
        Judge(samples=32, steps=50),
        NULLS,
    ),
}


INGREDIENTS: dict[str, Callable[[Stages], Stages]] = {
    "deflation": lambda s: replace(s, search=replace(s.search, deflations=0)),
    "constants": lambda s: replace(s, search=replace(s.search, constants=())),
    "tangents": lambda s: replace(s, search=replace(s.search, tangents=())),
    "small norms": lambda s: replace(s, search=replace(s.search, norms=s.search.norms[-1:])),
    "large norms": lambda s: replace(s, search=replace(s.search, norms=s.search.norms[:1])),
    "boundary": lambda s: replace(s, edge=replace(s.edge, starts=())),
    "novelty": lambda s: replace(s, novel=None),
    "noise scale": lambda s: replace(s, scaled=None),
    "refinement": lambda s: replace(s, refined=(0, 0, 0)),
    "aimed nulls": lambda s: replace(s, nulls=tuple(n for n in s.nulls if n not in AIMED)),
}
"""Parts of the method by name, and what the stages are without them."""


@dataclass(frozen=True)
class Backdrift:
    """Search by :class:`FixedPoint` and :class:`Boundary`, refine by :class:`Joint`, judge what is drawn.

    Ours. Every candidate is screened by a few samples; the best of each family are refined; the best
    of all is frozen, and on fresh seeds its samples are compared with plain ones and with those of
    other shifts of the same norm. The score is the share of fresh samples that hit the recovered
    target, less what plain noise and the nulls do (:attr:`Trial.background`), in [-1, 1].

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
        return {"version": 5, "budget": self.budget, "stages": asdict(self._stages())}

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
            found.append(stages.edge(model, seed=seed, progress=shown))
            case.found("search for ODE backdoors at their edge", _unranked(found))
            found.append(() if stages.novel is None else stages.novel(model, seed=seed, progress=shown))
            case.found("search for ODE backdoors by novelty", _unranked(found))
            if stages.scaled is not None:
                scaled = stages.scaled(model, seed=seed, progress=shown)
                found.append(tuple(c for c in scaled if _least(c) < stages.below))
                case.found("search for backdoors with a noise scale", _unranked(found))
            ranked = _rank(case, stages, found, shown)
            best, final, told = ranked[0][1], derive_seed(seed, "final"), partial(case.judging, ranked)
            trial = Trial.hold(model, stages.judge, best, stages.nulls, final, shown, told)
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


def _apart(ranked: list[Candidate], number: int) -> list[Candidate]:
    """The first that are not one another's like."""
    chosen: list[Candidate] = []
    for candidate in ranked:
        if len(chosen) < number and all(cosine(candidate.shift, c.shift) < ALIKE for c in chosen):
            chosen.append(candidate)
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
    progress(0, 0, "screened")
    case.found("screening", looked)
    begun = []
    for part, number in zip(found, stages.refined, strict=False):
        mine = {c.start for c in part}
        begun += _apart([c for _, c in looked if c.start in mine], number)
    scaled = [c for score, c in looked if c.scale is not None and score > stages.hopeless]
    begun += scaled[:1] if begun else []
    refined = []
    for candidate in begun:
        better = stages.refine.refine(model, candidate, seed=seed, progress=progress)
        refined.append(replace(better, start=f"{candidate.start}, refined"))
        case.found(f"refinement of {candidate.start}", looked + _unranked([refined]))
    plain = [c for c in refined if c.scale is None]
    looked += screen(model, stages.screen, tuple(plain), look, aimed=aimed)
    share, said = stages.softer, f", {stages.softer:g} of it"
    scaled = [c for c in refined if c.scale is not None]
    scaled += [replace(c, shift=share * c.shift, start=c.start + said) for c in scaled]
    looked += screen(model, stages.closer, tuple(scaled), look, aimed=aimed)
    ranked = sorted(looked, key=_worth)
    case.found("screening of refined triggers", ranked)
    return ranked
