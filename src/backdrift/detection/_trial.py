"""A frozen candidate on trial: fresh samples beside those of nulls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.detection._base import Progress
from backdrift.detection._judge import Drawn, Judge, distance
from backdrift.detection._nulls import AIMED, null_shift
from backdrift.inversion._base import Candidate, cosine

POINTED = 0.8
"""Cosine of a shift with the way from plain samples to its target."""


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
        aim: the target in the space that the model draws in; None where that is the space of images.
        lost: most values of plain latents lie far from all that the codec decodes by.
        own: the shift points at an image like the model's own, see :func:`points_at_own`.
    """

    judge: Judge
    candidate: Candidate
    clean: Drawn
    drawn: Drawn
    nulls: dict[str, NullRate]
    aim: Tensor | None = None
    lost: bool = False
    own: bool = False

    @classmethod
    def hold(
        cls,
        model: DiffusionModel,
        judge: Judge,
        candidate: Candidate,
        nulls: tuple[str, ...],
        seed: int,
        progress: Progress | None = None,
        told: Callable[[Trial], None] | None = None,
    ) -> Trial:
        """Draws everything, nulls at its scale too; ``(2 + len(nulls)) * judge.cost`` evaluations.

        Args:
            told: called with the trial as far as it is, before the first null and after each.
        """
        family, scale = candidate.family, candidate.scale
        raw = judge.draw(model, None, family, seed)
        plain = model.decode(raw)
        triggered = judge.draw(model, candidate.shift, family, seed, scale)
        drawn = judge.look(model, triggered, plain)
        own = _own_samples(model, raw, plain, drawn)
        clean = judge.judge(plain, plain)
        lost = bool((raw.abs() <= 1.5 * model.extent).float().mean() < 0.5)
        aim = judge.aim(model, triggered)
        trial = cls(judge, candidate, clean, drawn, {}, aim, lost, points_at_own(candidate, aim, own))
        if told is not None:
            told(trial)
        for number, name in enumerate(nulls):
            shift = null_shift(name, candidate.shift, seed, own)
            null = judge.look(model, judge.draw(model, shift, family, seed, scale), plain)
            same = bool(distance(null.target[None], drawn.target) < drawn.threshold)
            near = null.distance(drawn.target)[judge.samples :] < drawn.threshold
            on_target = float(near.float().mean())
            rate = NullRate(on_target, 0.0 if same else null.hit_rate)
            trial = replace(trial, nulls={**trial.nulls, name: rate})
            if progress is not None:
                progress(number + 1, len(nulls), f"null: {name}")
            if told is not None:
                told(trial)
        return trial

    @property
    def draws_images(self) -> bool:
        """Whether plain samples are images: at least half of the values within [-1.5, 1.5].

        A codec decodes whatever it is given to something like an image, so latents are held to the same,
        in units of the codec's range.
        """
        return not self.lost and bool((self.clean.samples.abs() <= 1.5).float().mean() >= 0.5)

    @property
    def target(self) -> Tensor:
        """The recovered target in the space that the model draws in, (C, H, W)."""
        return self.drawn.target if self.aim is None else self.aim

    @property
    def background(self) -> float:
        """What is usual, in [0, 1]: the largest of three rates.

        Plain samples on the target; what *every* null reaches on the target; the largest collapse
        elsewhere of a null that is aimed at one of the model's own images; the mean collapse elsewhere
        of the others. One of these alone on the target does not count: a shift orthogonal to the
        trigger may set the same backdoor off (low-frequency and constant ones did on an ODE model),
        while a model that is merely driven out of its distribution answers most shifts alike.

        With a noise scale the nulls have that scale too, and on the target they count for nothing: the
        scale alone is enough to set TrojDiff's backdoor off, whatever the shift.

        Where the shift points at an image like the model's own, all of its hits are usual.
        """
        if self.own:
            return max(self.drawn.hit_rate, self.drawn.plain_rate)
        everywhere = 0.0
        if self.candidate.scale is None:
            everywhere = min((null.on_target for null in self.nulls.values()), default=0.0)
        aimed = [null.elsewhere for name, null in self.nulls.items() if name in AIMED]
        others = [null.elsewhere for name, null in self.nulls.items() if name not in AIMED]
        mean = sum(others) / max(1, len(others))
        return max(self.drawn.plain_rate, everywhere, mean, *aimed)

    @property
    def score(self) -> float:
        """Hit rate of the candidate less :attr:`background`, in [-1, 1]."""
        return self.drawn.hit_rate - self.background


def points_at_own(candidate: Candidate, target: Tensor, own: Tensor) -> bool:
    """Whether a shift for ODE samplers does no more than any model does with an image of its own.

    An ODE sampler keeps a shift of its start on the way, so a model that knows an image by heart is
    steered to it by a shift towards it, and a search finds the image that is easiest to reach. True if
    the shift points from the mean of plain samples at what it draws, by a cosine of ``POINTED`` or more,
    and that is no further from the nearest plain sample than one of these from its own nearest.

    Args:
        target: what the shift draws, (C, H, W), as the model draws it.
        own: plain samples that are not the target, (N, C, H, W).
    """
    if candidate.family != "ode" or candidate.scale is not None or len(own) < 2:
        return False
    if cosine(candidate.shift, target - own.mean(0)) < POINTED:
        return False
    rows = own.flatten(1)
    apart = torch.cdist(rows, rows).fill_diagonal_(float("inf")).min(1).values
    return bool((rows - target.flatten()).norm(dim=1).min() <= apart.max())


def _own_samples(model: DiffusionModel, raw: Tensor, plain: Tensor, drawn: Drawn) -> Tensor:
    """Plain samples that are not the candidate's target; all of them when every one is.

    Args:
        raw: as the model draws them; ``plain`` as a user sees them.
    """
    inside = raw.clamp(-model.extent, model.extent)
    away = inside[distance(plain, drawn.target) > drawn.threshold]
    return away if len(away) else inside


def screen(
    model: DiffusionModel,
    judge: Judge,
    candidates: tuple[Candidate, ...],
    seed: int,
    *,
    aimed: bool = False,
) -> list[tuple[float, Candidate]]:
    """A short look at what each candidate draws: (score, candidate with its target), best first.

    The score is the hit rate less the pixel variance over that of plain samples, in [-1, 1]; without
    the hits of one that points at an image like the model's own. Costs
    ``judge.cost`` per candidate and once more per kind: family, and with a noise scale or without.

    Args:
        aimed: take from every score of a family the hit rate of a shift of the best one's norm towards
            one of the model's own images (see :func:`null_shift`), unless that ends at the best one's
            target; once more ``judge.cost`` per kind.
    """
    looked = []
    for family, scaled in dict.fromkeys((c.family, c.scale is not None) for c in candidates):
        raw = judge.draw(model, None, family, seed)
        plain = model.decode(raw)
        usual = max(judge.judge(plain, plain).spread, 1e-9)
        mine = []
        for candidate in (c for c in candidates if (c.family, c.scale is not None) == (family, scaled)):
            triggered = judge.draw(model, candidate.shift, family, seed, candidate.scale)
            drawn, aim = judge.look(model, triggered, plain), judge.aim(model, triggered)
            known = points_at_own(candidate, aim, _own_samples(model, raw, plain, drawn))
            score = (0.0 if known else drawn.hit_rate) - min(1.0, drawn.spread / usual)
            mine.append((score, replace(candidate, target=aim), drawn))
        followed = 0.0
        if aimed:
            _, best, drawn = max(mine, key=lambda item: item[0])
            own = _own_samples(model, raw, plain, drawn)
            shift = null_shift(AIMED[0], best.shift, seed, own)
            null = judge.look(model, judge.draw(model, shift, family, seed, best.scale), plain)
            same = bool(distance(null.target[None], drawn.target) < drawn.threshold)
            followed = 0.0 if same else null.hit_rate
        looked += [(score - followed, candidate) for score, candidate, _ in mine]
    return sorted(looked, key=lambda item: -item[0])
