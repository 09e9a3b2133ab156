"""Inversion of triggers that come with a noise scale of their own (TrojDiff): forward passes only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate, Progress, antithetic_noise


@dataclass(frozen=True)
class NoiseScale:
    """Reads mu and gamma from how the model answers scaled and shifted noise at t = T-1.

    At ``x = g eps + v`` a network in poison mode predicts ``(x - mu) / gamma``, a clean one about x.
    So with ``m = mean eps_hat`` and ``k = mean eps_hat eps`` for every element, ``gamma = g / k`` and
    ``mu = v - gamma m``: put them back as the next (v, g), repeat. The clean answer is a fixed point at
    mu = 0 and gamma = 1, the backdoor's another. A patch has its gamma inside and 1 around it, so g is
    one number for every element at first and a map afterwards, averaged over channels and neighbours.

    Ours; the statistic is TERD's model (arXiv 2409.05294) of TrojDiff solved in closed form where it
    descends. Gain is ``||mu|| / sqrt(C H W)`` times ``1 - gamma`` at its smallest.

    Args:
        noises: antithetic noises per round, even.
        rounds: iterations per start.
        scales: first g of the searches that begin without a shift.
        constants: first v of searches for a patch, everywhere that value, with the smallest scale.
        window: side of the square over which g is averaged, odd, in pixels.
    """

    noises: int = 64
    rounds: int = 5
    scales: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    constants: tuple[float, ...] = (0.8, -0.8)
    window: int = 3

    @property
    def starts(self) -> list[tuple[float, float]]:
        """(v everywhere, g) of every search."""
        return [(0.0, g) for g in self.scales] + [(c, min(self.scales)) for c in self.constants]

    @property
    def cost(self) -> int:
        """Network evaluations."""
        return self.noises * self.rounds * len(self.starts)

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`; a ``start`` is the first v of every scale."""
        begun = [(c, g) for c, g in self.starts if start is None or not c]
        found = []
        with model.frozen(), torch.no_grad():
            for number, (constant, g) in enumerate(begun):
                label = f"noise scale {g:g}" + (f", constant {constant:+g}" if constant else "")
                v = torch.full(model.sample_shape, constant) if start is None else start
                found.append(self._iterate(model, label, v.to(model.device), g, seed))
                if progress is not None:
                    progress(number + 1, len(begun), f"{label}, gain {found[-1].gain:.2f}")
        return tuple(sorted(found, key=lambda c: -c.gain))

    def _iterate(self, model: DiffusionModel, label: str, v: Tensor, first: float, seed: int) -> Candidate:
        noise = antithetic_noise(model, self.noises, seed, label)
        g, history = torch.full_like(v, first), []
        for _ in range(self.rounds):
            predicted = model(g * noise + v, len(model.schedule) - 1)
            gamma = self._smooth(g / (predicted * noise).mean(0).clamp_min(0.05)).clamp(0.05, 1.0)
            v, g = v - gamma * predicted.mean(0), gamma
            history.append(float(v.square().mean().sqrt() * (1 - g.min())))
        return Candidate(v, "sde", label, history[-1], history=tuple(history), scale=g)

    def _smooth(self, scale: Tensor) -> Tensor:
        even = scale.mean(0, keepdim=True)[None]
        pooled = avg_pool2d(even, self.window, 1, self.window // 2, count_include_pad=False)[0]
        return pooled.expand_as(scale).contiguous()
