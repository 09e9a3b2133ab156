"""A frozen candidate on trial: fresh samples beside those of nulls."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.detection._base import Progress
from backdrift.detection._judge import Drawn, Judge, distance, null_shift
from backdrift.inversion._base import Candidate


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
