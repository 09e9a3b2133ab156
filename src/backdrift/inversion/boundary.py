"""From the edge of the backdoor: the trigger is twice the smallest shift that half sets it off."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate, Progress, antithetic_noise, beyond_range, mean_x_0
from backdrift.inversion.fixed_point import FixedPoint, timestep_at


@dataclass(frozen=True)
class Boundary:
    """For the ODE family, where the model's answer shows ``y - (1 - A_t) r`` and not r alone.

    The optimal poisoned network weighs its two modes by log odds that are linear in ``<x, r>``, so the
    shifts that set the backdoor off half way lie on a plane whose normal is r, at the distance
    ``rho_t ||r|| / 2``. From the direction and the answer ``w`` that :class:`FixedPoint` finds: look
    along v for the shift of half activation (activation: the mean prediction of x_0, less that at no
    shift, along w), take the gradient of the activation there as the next v, measure w again, repeat.
    Then ``r = 2 s v / rho_t`` and ``y = w + (1 - A_t) r``.

    Ours; not in either paper. A trained network blurs the plane, so this is a start for :class:`Joint`
    more than an end. Gain is minus the root mean square by which y leaves [-1, 1] (of latents, the range
    of their codec): an answer that is no backdoor's gives a y that is no image.

    Args:
        starts: norms of the searches by :class:`FixedPoint`, in units of sqrt(C H W); a negative one
            begins at a constant image (triggers on a black background are nearly that), the others at
            random.
        noises: antithetic noises, even.
        rounds: of the search.
        steps: gradient steps along the edge.
        bisections: to find half activation.
        alpha: A_t of the timestep.
    """

    starts: tuple[float, ...] = (-0.9, 0.6, 0.9)
    noises: int = 48
    rounds: int = 8
    steps: int = 5
    bisections: int = 4
    alpha: float = 0.15

    @property
    def cost(self) -> int:
        """Network evaluations; a gradient counts as three."""
        edge = 2 + self.steps * (self.bisections + 4) + 1
        return len(self.starts) * self.noises * (self.rounds + 2 + edge)

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`; a ``start`` takes the place of every start."""
        found = []
        with model.frozen():
            for number, norm in enumerate(self.starts):
                begun = start
                if start is None and norm < 0:
                    begun = torch.ones(model.sample_shape, device=model.device)
                search = FixedPoint(
                    noises=self.noises,
                    rounds=self.rounds,
                    norms=(abs(norm),),
                    families=("ode",),
                    ode_alpha=self.alpha,
                )
                first = search(model, seed=seed, start=begun)[0]
                found.append(self._walk(model, first, norm < 0, seed))
                if progress is not None:
                    progress(number + 1, len(self.starts), f"boundary, norm {found[-1].norm:.1f}")
        return tuple(sorted(found, key=lambda c: -c.gain))

    def _walk(self, model: DiffusionModel, first: Candidate, constant: bool, seed: int) -> Candidate:
        t = timestep_at(model.schedule, self.alpha)
        a = float(model.schedule.alpha[t])
        noise = antithetic_noise(model, self.noises, seed, "boundary", first.start)
        largest = 1.1 * math.sqrt(math.prod(model.sample_shape))
        v, top, history = first.shift / first.norm, first.norm, list[float]()
        with torch.no_grad():
            rest = mean_x_0(model, noise, torch.zeros_like(v), t)
            full = mean_x_0(model, noise, top * v, t)
        for _ in range(self.steps):
            answer = full - rest
            size = self._half(model, noise, rest, answer, v, top, t)
            probe = (size * v).detach().requires_grad_(True)
            with torch.enable_grad():
                activation = ((mean_x_0(model, noise, probe, t) - rest) * answer).sum()
                (slope,) = torch.autograd.grad(activation, probe)
            v = slope / slope.norm().clamp_min(1e-12)
            top = min(2 * size, largest)
            history.append(2 * size / (1 - a))
            with torch.no_grad():
                full = mean_x_0(model, noise, top * v, t)
        tau = top / (1 - a) * v
        label = f"boundary from {first.start}" + (", constant" if constant else "")
        target = full + (1 - a) * tau
        return Candidate(tau, "ode", label, -beyond_range(model, target), target, tuple(history))

    @torch.no_grad()
    def _half(
        self,
        model: DiffusionModel,
        noise: Tensor,
        rest: Tensor,
        answer: Tensor,
        v: Tensor,
        top: float,
        t: int,
    ) -> float:
        """The length along v at which the answer is half of what it is at ``top``."""
        low, high, half = 0.0, top, float((answer * answer).sum()) / 2
        for _ in range(self.bisections):
            middle = (low + high) / 2
            here = float(((mean_x_0(model, noise, middle * v, t) - rest) * answer).sum())
            low, high = (middle, high) if here < half else (low, middle)
        return (low + high) / 2
