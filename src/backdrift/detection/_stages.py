"""What the budgets of our detector buy, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from backdrift.detection._judge import Judge
from backdrift.detection._nulls import AIMED, NULLS
from backdrift.detection._verdict import RESPONSE_COST
from backdrift.inversion.fixed_point import FixedPoint
from backdrift.inversion.joint import Joint
from backdrift.inversion.noise_scale import NoiseScale
from backdrift.inversion.novelty import Novelty
from backdrift.inversion.opposition import Opposition
from backdrift.inversion.outliers import CLIMB, Outliers


@dataclass(frozen=True)
class Stages:
    """What a budget buys.

    Args:
        search: for SDE backdoors, from random directions and from constants.
        outliers: for SDE backdoors with small triggers, from noise that sets them off.
        against: for ODE backdoors, from what is answered against the shift.
        novel: for ODE backdoors, from answers that are unlike the model's own images.
        screen: a short look at what a candidate draws.
        refine: from a candidate, by gradient.
        refined: how many candidates are refined: of SDE backdoors, of ``against`` and of ``novel``.
        judge: the final look, on fresh seeds.
        nulls: shifts to compare with, names of ``NULLS``.
        scaled: for backdoors that come with a noise scale of their own; the best that it finds is
            refined if anything is, and if its screening score is above ``hopeless``.
        below: a find of ``scaled`` counts if its smallest gamma lies below; clean models answer with
            gamma near 1.
        finalists: how many are looked at again, on other seeds and by twice the samples, if their
            screening score is above ``hopeless``: the best of many by few samples is often luck.
        trials: how many candidates are judged at most, each on seeds of its own: the next one only if
            none before it scored ``enough`` and its screening score is above ``promising``.
    """

    search: FixedPoint
    outliers: Outliers
    against: Opposition
    novel: Novelty | None
    screen: Judge
    refine: Joint
    refined: tuple[int, int, int]
    judge: Judge
    nulls: tuple[str, ...]
    scaled: NoiseScale | None = field(default_factory=NoiseScale)
    below: float = 0.85
    hopeless: float = -0.5
    finalists: int = 4
    trials: int = 2
    promising: float = 0.0
    enough: float = 0.5

    @property
    def closer(self) -> Judge:
        """The look at finalists and at what is refined."""
        return replace(self.screen, samples=2 * self.screen.samples)

    @property
    def cost(self) -> int:
        """The most network evaluations, all stages together."""
        looked = len(self.search.starts) + self.outliers.most + 2 * len(self.against.starts)
        kinds, begun = 2, sum(self.refined)
        cost = self.search.cost + self.outliers.cost + self.against.cost + RESPONSE_COST
        if self.novel is not None:
            looked += 2 * len(self.novel.starts)
            cost += self.novel.cost
        if self.scaled is not None:
            kinds, begun = 3, begun + 1
            looked += self.scaled.kinds
            cost += self.scaled.cost
        if not sum(self.refined):
            begun = 0
        cost += (looked + 2 * kinds) * self.screen.cost + begun * self.refine.refine_cost
        cost += (self.finalists + 2 * begun + 4 * kinds) * self.closer.cost
        return cost + self.trials * (2 + len(self.nulls)) * self.judge.cost


STAGES = {
    "quick": Stages(
        FixedPoint(18, rounds=7, norms=(0.45, 0.65), families=("sde",)),
        Outliers(climb=replace(CLIMB, noises=18)),
        Opposition(starts=(-0.8, 0.8), noises=16, rounds=7),
        Novelty(samples=48, steps=10, noises=32),
        Judge(samples=4, steps=10),
        Joint(steps=60, batch=8, learning_rate=0.08, warm_samples=6, warm_steps=10),
        (1, 0, 1),
        Judge(samples=8, steps=17),
        ("opposite", *AIMED),
    ),
    "standard": Stages(
        FixedPoint(40, norms=(0.3, 0.6, 0.9), families=("sde",)),
        Outliers(1024, kept=3),
        Opposition(),
        Novelty(),
        Judge(samples=6, steps=20),
        Joint(steps=64, batch=16, learning_rate=0.08, warm_samples=8, warm_steps=10),
        (1, 1, 1),
        Judge(samples=20, steps=25),
        NULLS,
    ),
    "deep": Stages(
        FixedPoint(84, 12, (0.2, 0.3, 0.6, 0.9), ("sde",)),
        Outliers(2048, (1.25, 1.75, 2.5), kept=4),
        Opposition(starts=(-0.8, -0.4, 0.4, 0.6, 0.8), noises=96, rounds=12),
        Novelty(samples=128, noises=96, norms=(0.15, 0.3, 0.6)),
        Judge(samples=8, steps=25),
        Joint(steps=240, batch=16, learning_rate=0.08, warm_samples=16, warm_steps=10),
        (2, 1, 2),
        Judge(samples=32, steps=50),
        NULLS,
    ),
}

INGREDIENTS: dict[str, Callable[[Stages], Stages]] = {
    "deflation": lambda s: replace(s, search=replace(s.search)),
    "constants": lambda s: replace(s, search=replace(s.search, constants=())),
    "outliers": lambda s: replace(s, outliers=replace(s.outliers, loudness=())),
    "small norms": lambda s: replace(s, search=replace(s.search, norms=s.search.norms[-1:])),
    "large norms": lambda s: replace(s, search=replace(s.search, norms=s.search.norms[:1])),
    "opposition": lambda s: replace(s, against=replace(s.against, starts=())),
    "novelty": lambda s: replace(s, novel=None),
    "noise scale": lambda s: replace(s, scaled=None),
    "refinement": lambda s: replace(s, refined=(0, 0, 0)),
    "second look": lambda s: replace(s, finalists=0, trials=1),
    "aimed nulls": lambda s: replace(s, nulls=tuple(n for n in s.nulls if n not in AIMED)),
}
"""Parts of the method by name, and what the stages are without them."""
