"""TERD's input detection: is this starting noise more likely under the inverted trigger?"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate, Inversion
from backdrift.inversion.terd import Terd


@dataclass(frozen=True, eq=False)
class GaussianRatio:
    """``log N(x; mu, gamma^2) - log N(x; 0, 1)``, all elements independent; suspicious above 0.

    TERD, ICML 2024, arXiv 2409.05294. Per element ``-log gamma - (x - mu)^2 / (2 gamma^2) + x^2 / 2``, in
    O(C H W) and double precision; the published code builds dense covariance matrices.

    With gamma = 1 it is ``<x, mu> - ||mu||^2 / 2``: mean ``-+ ||mu||^2 / 2`` and standard deviation
    ``||mu||`` on plain and on triggered noise. A trigger on a black background is told at any error rate
    for that reason alone; whether the detector works shows on triggers of small norm.

    Args:
        shift: mu, (C, H, W).
        scale: gamma, a standard deviation, (C, H, W); None is 1.
        published_covariance: take gamma for the variance, as the published code does.
        floor: gamma is held from here up.
    """

    shift: Tensor
    scale: Tensor | None = None
    published_covariance: bool = False
    floor: float = 1e-3

    threshold: float = field(default=0.0, init=False)

    @classmethod
    def of(cls, candidate: Candidate, *, published_covariance: bool = False) -> GaussianRatio:
        """The ratio for an inverted trigger."""
        return cls(candidate.shift, candidate.scale, published_covariance)

    def scores(self, noise: Tensor) -> Tensor:
        """The log-likelihood ratio of every starting noise (N, C, H, W): float64, (N,), in nats.

        Raises:
            ValueError: noise of another shape than the trigger.
        """
        if noise.ndim != self.shift.ndim + 1 or noise.shape[1:] != self.shift.shape:
            raise ValueError(f"noise must be (N, {tuple(self.shift.shape)}), not {tuple(noise.shape)}")
        x = noise.detach().double()
        mu = self.shift.detach().to(x)
        gamma = torch.ones_like(mu) if self.scale is None else self.scale.detach().to(x)
        gamma = gamma.clamp_min(self.floor)
        variance = gamma if self.published_covariance else gamma.square()
        each = (x.square() - (x - mu).square() / variance - variance.log()) / 2
        total: Tensor = each.flatten(1).sum(1)
        return total

    def flags(self, noise: Tensor) -> Tensor:
        """Which starting noises are suspicious: bool, (N,)."""
        return self.scores(noise) > self.threshold


@dataclass(frozen=True)
class TerdInput:
    """Inverts a model and scores starts by the largest ratio over the inverted triggers.

    TERD, ICML 2024, arXiv 2409.05294. The paper has one trigger, as it knows the attack; here there is one
    for every hypothesis of the inversion, and a start is suspicious under any of them.

    Args:
        inversion: published length by default, 1,920,000 evaluations.
        published_covariance: see :class:`GaussianRatio`.
    """

    inversion: Inversion = field(default_factory=Terd)
    published_covariance: bool = False

    def fit(self, model: DiffusionModel, seed: int) -> tuple[GaussianRatio, ...]:
        """One ratio for every inverted trigger; to be kept where several batches are scored."""
        found = self.inversion(model, seed=seed)
        return tuple(GaussianRatio.of(c, published_covariance=self.published_covariance) for c in found)

    def scores(self, model: DiffusionModel, starts: Tensor, seed: int) -> Tensor:
        """Suspicion of every start (N, C, H, W), higher is more: float64, (N,); the threshold is 0."""
        return torch.stack([ratio.scores(starts) for ratio in self.fit(model, seed)]).amax(0)
