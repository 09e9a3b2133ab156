"""Inversion of triggers that come with a noise scale of their own (TrojDiff): forward passes only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate, Progress, antithetic_noise


@dataclass(frozen=True)
class NoiseScale:
    """Reads mu and gamma from how the model answers scaled and shifted noise at t = T-1.

    There A is about 0 and S about 1. At ``x = g eps + v`` a network in poison mode predicts
    ``(x - mu) / gamma``, a clean one about x.
    So with the mean ``m`` of eps_hat and its slope ``k`` over eps for every element, ``gamma = g / k`` and
    ``mu = v - gamma m``: put them back as the next (v, g), repeat. The clean answer is a fixed point at
    mu = 0 and gamma = 1, the backdoor's another.

    A blend is met by a scale alone, v = 0, where mu is small beside it: at ``g eps`` the log odds of poison
    mode are ``C H W (-log gamma - g^2 (1 / gamma^2 - 1) / 2) - ||mu||^2 / (2 gamma^2)`` and those of the
    poison rate. A patch has its gamma inside and 1 around it, and is met by squares of half the side,
    bright and dark, with little noise: nine of them cover every patch of a quarter of the side wholly. A
    first round looks at all starts; the best of each kind goes on.

    Ours; the model is TrojDiff's (arXiv 2303.05762), which TERD (arXiv 2409.05294) inverts by descent.
    Gain is the root mean square of mu times ``1 - min gamma``.

    Args:
        looks: antithetic noises of the first round, even.
        noises: of the others.
        rounds: how many others.
        scales: g of the starts for a blend.
        bright: v of the squares, plus and minus; ``dim`` is their g.
    """

    looks: int = 16
    noises: int = 64
    rounds: int = 2
    scales: tuple[float, ...] = (0.3, 0.6)
    bright: float = 0.9
    dim: float = 0.15

    @property
    def kinds(self) -> int:
        """How many candidates it finds: the best blend and the best patch."""
        return 2

    @property
    def cost(self) -> int:
        """Network evaluations."""
        return (len(self.scales) + 18) * self.looks + 2 * self.rounds * self.noises

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`; a ``start`` is v, at every scale."""
        found = []
        with model.frozen(), torch.no_grad():
            first = torch.zeros(model.sample_shape) if start is None else start
            kinds = [("scale", [(first.to(model.device), torch.full_like(first, g)) for g in self.scales])]
            if start is None:
                kinds.append(("patch", self._squares(model)))
            for number, (kind, starts) in enumerate(kinds):
                label = f"noise scale, {kind}"
                noise = antithetic_noise(model, self.looks, seed, label, "look")
                looked = [self._round(model, noise, v, g.to(model.device)) for v, g in starts]
                found.append(self._iterate(model, label, *max(looked, key=_gain), seed))
                if progress is not None:
                    progress(number + 1, len(kinds), f"{label}, gain {found[-1].gain:.2f}")
        return tuple(sorted(found, key=lambda c: -c.gain))

    def _squares(self, model: DiffusionModel) -> list[tuple[Tensor, Tensor]]:
        _, height, width = model.sample_shape
        starts = []
        for sign, row, column in product((1, -1), range(3), range(3)):
            inside = torch.zeros(model.sample_shape, device=model.device)
            top, left = row * height // 4, column * width // 4
            inside[:, top : top + height // 2, left : left + width // 2] = 1
            starts.append((sign * self.bright * inside, 1 - (1 - self.dim) * inside))
        return starts

    def _iterate(self, model: DiffusionModel, label: str, v: Tensor, g: Tensor, seed: int) -> Candidate:
        noise = antithetic_noise(model, self.noises, seed, label)
        found = [(v, g)]
        for _ in range(self.rounds):
            found.append(self._round(model, noise, *found[-1]))
        history = tuple(_gain(one) for one in found)
        v, g = found[-1]
        return Candidate(v, "sde", label, history[-1], history=history, scale=g)

    def _round(self, model: DiffusionModel, noise: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        predicted = model(g * noise + v, len(model.schedule) - 1)
        slope = ((predicted * noise).sum(0) / noise.square().sum(0)).clamp_min(0.05)
        gamma = (g / slope).clamp(0.05, 1.0)
        return v - gamma * predicted.mean(0), gamma


def _gain(found: tuple[Tensor, Tensor]) -> float:
    v, g = found
    return float(v.square().mean().sqrt() * (1 - g.min()))
