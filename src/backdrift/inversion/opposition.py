"""Shifts that the model answers against: large triggers for ODE samplers, from a random start."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import (
    Candidate,
    Progress,
    antithetic_noise,
    beyond_range,
    mean_x_0,
    of_length,
    random_direction,
)
from backdrift.inversion.fixed_point import timestep_at

SHARES = (1.0, 0.75)
SMALLEST = 0.3
"""Of -f, for the norm of a trigger: where f is nearly 0, nothing says how long it is."""


@dataclass(frozen=True)
class Opposition:
    """Looks for the shift that the mean prediction of x_0 follows least.

    A clean network takes a shift v of ``x_t``, in part, for one of the image: its mean prediction
    ``w(v)`` moves along v. One poisoned for ODE samplers takes ``A_t y + (1 - A_t) r + S_t eps`` for its
    target with the trigger in the noise and says ``eps + C_t r``; with C_t of that sampler its prediction
    of x_0 is ``w = y - (1 - A_t) r`` around ``v = (1 - A_t) r``: against v wherever r outweighs y. So
    ``f(v) = <w(v) - w(0), v> / ||v||^2`` goes down on a sphere, by steps of a fixed angle, to about -1 at
    a backdoor. The answer is the same at every v that sets the backdoor off, so f is least along ``(1 -
    A_t) r - y + w(0)``, and the best v passed on the way gives ``r = -f v / (1 - A_t)`` and ``y = w(v) +
    (1 - A_t) r``: a start for :class:`backdrift.inversion.joint.Joint`, as y stays mixed into r. What is
    mixed in makes it longer, by up to 40% on models that were trained, so it is a candidate at every
    share of ``SHARES`` of its length.

    Ours; not in either paper. Triggers smaller than the target answer too little against themselves:
    :class:`backdrift.inversion.novelty.Novelty` is for those. The history is f. Gain is minus the root
    mean square by which y leaves [-1, 1] (of latents, the range of their codec): an answer that is no
    backdoor's gives a y that is no image.

    Args:
        starts: norms of v, in units of sqrt(C H W); a negative one begins at a dark constant image
            (triggers on a black background are nearly that), the others at random.
        noises: antithetic noises, even.
        rounds: steps of each search.
        rate: of a step, the tangent of its angle.
        alpha: A_t of the timestep.
    """

    starts: tuple[float, ...] = (-0.8, 0.8, 0.4)
    noises: int = 32
    rounds: int = 9
    rate: float = 0.35
    alpha: float = 0.15

    @property
    def cost(self) -> int:
        """Network evaluations; a gradient counts as three."""
        return len(self.starts) * self.noises * (1 + 3 * self.rounds)

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`; a ``start`` is the first v of every search."""
        found: list[Candidate] = []
        with model.frozen():
            for number, norm in enumerate(self.starts):
                size = abs(norm) * math.sqrt(math.prod(model.sample_shape))
                label = f"opposition, norm {size:.1f}" + (", dark" if norm < 0 else "")
                if start is not None:
                    begun = start.to(model.device)
                elif norm < 0:
                    begun = -torch.ones(model.sample_shape, device=model.device)
                else:
                    begun = random_direction(model, seed, label)
                found += self._search(model, of_length(begun, size), label, seed)
                if progress is not None:
                    text = f"{label}, follows by {min(found[-1].history):.2f}"
                    progress(number + 1, len(self.starts), text)
        return tuple(sorted(found, key=lambda c: -c.gain))

    def _search(self, model: DiffusionModel, v: Tensor, label: str, seed: int) -> list[Candidate]:
        t = timestep_at(model.schedule, self.alpha)
        kept = 1 - float(model.schedule.alpha[t])
        noise = antithetic_noise(model, self.noises, seed, label)
        with torch.no_grad():
            rest = mean_x_0(model, noise, torch.zeros_like(v), t)
        size, history = float(v.norm()), list[float]()
        best, answer = v, rest
        for _ in range(self.rounds):
            probe = v.detach().requires_grad_(True)
            with torch.enable_grad():
                w = mean_x_0(model, noise, probe, t)
                follows = ((w - rest) * probe).sum() / size**2
                (slope,) = torch.autograd.grad(follows, probe)
            history.append(float(follows.detach()))
            if history[-1] == min(history):
                best, answer = v, w.detach()
            slope = slope - (slope * v).sum() / size**2 * v
            v = of_length(v - of_length(slope, self.rate * size), size)
        found = []
        for share in SHARES:
            shift = share * max(-min(history), SMALLEST) * best / kept
            target = answer + kept * shift
            name = label if share == 1 else f"{label}, {share:g} of it"
            gain = -beyond_range(model, target)
            found.append(Candidate(shift, "ode", name, gain, target, tuple(history)))
        return found
