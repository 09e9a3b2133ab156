"""TERD's input detection: whether a starting noise is more likely under the inverted trigger."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.detection.inputs._base import check_starts
from backdrift.inversion._base import Candidate
from backdrift.inversion.terd import Terd as Inversion


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


@dataclass(frozen=True)
class Terd:
    """Inverts the model and scores starts by the largest ratio over the inverted triggers.

    TERD, ICML 2024, arXiv 2409.05294. The paper has one trigger, as it knows the attack; here there is one
    for every hypothesis of the inversion, and a start is suspicious under any of them, from 0 on.

    Cost: that of the inversion, 1,920,000 evaluations as published, whatever the number of starts.

    Args:
        iterations: of the estimation, see :class:`backdrift.inversion.terd.Terd`.
        published_covariance: see :class:`GaussianRatio`.
    """

    iterations: int = 3000
    published_covariance: bool = False

    def _inversion(self) -> Inversion:
        return Inversion(iterations=self.iterations)

    def settings(self) -> dict[str, Any]:
        """See :class:`backdrift.detection.inputs._base.InputDetector`."""
        inversion = json.loads(json.dumps(asdict(self._inversion())))
        return {"version": 1, "inversion": inversion, "published_covariance": self.published_covariance}

    def cost(self, n: int) -> int:
        """See :class:`backdrift.detection.inputs._base.InputDetector`."""
        return self._inversion().cost

    def fit(self, model: DiffusionModel, *, seed: int) -> tuple[GaussianRatio, ...]:
        """One ratio for every inverted trigger; to be kept where several batches are scored."""
        found = self._inversion()(model, seed=seed)
        return tuple(GaussianRatio.of(c, published_covariance=self.published_covariance) for c in found)

    def scores(self, model: DiffusionModel, starts: Tensor, *, seed: int) -> Tensor:
        """The ratio in nats; see :class:`backdrift.detection.inputs._base.InputDetector`."""
        check_starts(model, starts)
        return torch.stack([ratio.scores(starts) for ratio in self.fit(model, seed=seed)]).amax(0).cpu()
