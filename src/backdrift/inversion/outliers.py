"""Small triggers in loud noise: a few noises set a backdoor off by chance, and say where it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate, Progress, antithetic_noise, cosine
from backdrift.inversion.fixed_point import FixedPoint

ALIKE = 0.9
"""Cosine from which on two directions are one."""
OUTLYING = 3.0
"""Standard deviations; the noises that a direction answers to by more are counted."""

CLIMB = FixedPoint(24, 4, norms=(0.25, 0.45), families=("sde",), constants=())


@dataclass(frozen=True)
class Outliers:
    """Looks for noises that a model answers unlike the others, and climbs from what they have in common.

    A poisoned network predicts ``eps + C_t r`` where the input lies beyond ``||r|| / 2`` along r, and
    what every network does elsewhere. Noise of standard deviation k gets there by itself with a
    probability of ``Q(||r|| / (2 k))``: at k = 1.25 one in a thousand noises for a trigger half as long
    as the noise of 256 pixels, and ever more for smaller ones, in whatever direction r points. Of those
    few the residual ``k eps - eps_hat`` has r in it, all others have not: a coordinate that is nearly
    always 0 and, rarely and on one side only, large. Independent component analysis finds such
    coordinates. Residuals lose their mean and their regression on the noise, their first ``parts``
    principal components are whitened, and ``w <- E[z max(0, <w, z>)^2]`` (FastICA for skewness, Hyvarinen
    1999) runs from each of the outermost noises into the coordinate of the largest skewness nearby. What
    its outliers say, on average, is a start for :class:`FixedPoint`, in whose basin it lies.

    Ours; not in either paper. Forward passes only. A search from a random direction begins at a cosine of
    ``1 / sqrt(C H W)`` to r, where a backdoor does not answer yet and what any network does about
    constants and photographs is all that is answered; this does not depend on a direction to begin with.
    Triggers as long as the noise are beyond its reach.

    Args:
        noises: of each loudness, antithetic, even.
        loudness: k, in units of the standard deviation that the model was trained on.
        parts: principal components that are looked at.
        kept: directions of each loudness that are climbed from; those that a single noise stands for come
            last, and one that is like another does not count.
        climb: from every direction; of its norms the one with the largest gain counts.
    """

    noises: int = 512
    loudness: tuple[float, ...] = (1.25, 1.75)
    parts: int = 24
    kept: int = 2
    climb: FixedPoint = CLIMB

    @property
    def most(self) -> int:
        """Candidates that are returned, at most."""
        return len(self.loudness) * self.kept

    @property
    def cost(self) -> int:
        """Network evaluations, at most."""
        return len(self.loudness) * (self.noises + self.kept * self.climb.cost)

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`; a ``start`` is all there is to climb from."""
        found: list[Candidate] = []
        with model.frozen():
            tried = self.loudness if start is None else (1.0,)
            for number, k in enumerate(tried):
                towards = self._directions(model, k, seed) if start is None else [start.to(model.device)]
                for rank, direction in enumerate(towards):
                    best = max(self.climb(model, seed=seed, start=direction), key=lambda end: end.gain)
                    label = f"outliers at {k:g}, number {rank + 1}"
                    found.append(replace(best, start=f"{label}, {best.start}"))
                if progress is not None:
                    progress(number + 1, len(tried), f"outliers of noise times {k:g}")
        return tuple(sorted(found, key=lambda c: -c.gain))

    @torch.no_grad()
    def _directions(self, model: DiffusionModel, loudness: float, seed: int) -> list[Tensor]:
        """What the outliers of each of the most skewed coordinates answer, (C, H, W), the best first."""
        last, sigma = len(model.schedule) - 1, float(model.schedule.sigma[-1])
        noise = loudness * antithetic_noise(model, self.noises, seed, "outliers", loudness)
        rest = torch.cat([x - model(sigma * x, last) for x in torch.split(noise, 64)]).flatten(1)
        if not bool(rest.isfinite().all()):
            return []
        rows = noise.flatten(1)
        rest -= (rest * rows).sum() / (rows * rows).sum() * rows
        rest -= rest.mean(0)
        skewed = [z for _, z in skewed_coordinates(rest, self.parts)]
        found: list[Tensor] = []
        for z in sorted(skewed, key=lambda z: int((z > OUTLYING).sum()) < 2):
            answer = (z.clamp_min(0).square() @ rest).reshape(model.sample_shape)
            if len(found) < self.kept and all(cosine(answer, f) < ALIKE for f in found):
                found.append(answer)
        return found


def skewed_coordinates(rows: Tensor, parts: int, *, starts: int = 24) -> list[tuple[float, Tensor]]:
    """Coordinates of variance 1 that are rarely large, on one side: (skewness, values (N,)), best first.

    Args:
        rows: (N, D), of mean 0.
        parts: principal components to search in.
        starts: rows to begin at, the outermost; some end at the same coordinate.
    """
    _, left = torch.linalg.eigh((rows @ rows.T).double())
    white = left[:, -parts:].to(rows) * math.sqrt(len(rows))
    found = []
    for index in white.norm(dim=1).argsort(descending=True)[:starts]:
        w = white[index]
        for _ in range(15):
            w = w / w.norm().clamp_min(1e-12)
            w = (white * (white @ w).clamp_min(0).square()[:, None]).mean(0)
        z = white @ (w / w.norm().clamp_min(1e-12))
        found.append((float(z.pow(3).mean()), z))
    return sorted(found, key=lambda item: -item[0])
