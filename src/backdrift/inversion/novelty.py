"""For ODE backdoors: the shift whose answer leaves what the model draws by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.inversion._base import (
    FAMILY_SAMPLER,
    Candidate,
    Progress,
    antithetic_noise,
    beyond_range,
    mean_x_0,
    of_length,
    random_direction,
)
from backdrift.inversion.fixed_point import timestep_at


@dataclass(frozen=True)
class Novelty:
    """Looks for the part of an answer that no sample of the model has.

    A clean network answers a shift of its input with the mean of images like its own, which lies in the
    span of its samples. One poisoned for ODE samplers answers ``w = y - (1 - A_t) r``
    (:class:`backdrift.inversion.opposition.Opposition`), of which some lies outside. With P the projection
    off the principal components of plain samples and ``w(v)`` the mean prediction of x_0 at
    ``S_t eps + v``, v of constant norm becomes the gradient of ``<P (w(v) - w(0)), w(v)>``, the first
    factor held: near the backdoor that is ``(1 - A_t) r + A_t (y - w(0))``, whatever the answer looks
    like. Where ``w(v) + v``, which would be y, leaves the range of images, the answer counts up to the
    range only.

    Both signs of v do as well while the answer is linear, so the search parts in two half way. The
    candidate is ``r = v / (1 - A_t)``, its target ``w(v) + v``.

    Ours; not in either paper. The target must have something that the model does not draw. The history is
    the norm of the first factor. Gain is minus the root mean square by which the target leaves that
    range.

    Args:
        samples: plain ones, by DDIM.
        steps: of each.
        share: of their variance, that of the principal components.
        noises: antithetic noises, even.
        rounds: before the search parts, and as many after it.
        alphas: A_t of the timesteps.
        norms: of v, in units of sqrt(C H W).
    """

    samples: int = 64
    steps: int = 20
    share: float = 0.99
    noises: int = 48
    rounds: int = 4
    alphas: tuple[float, ...] = (0.15, 0.3)
    norms: tuple[float, ...] = (0.3,)

    @property
    def starts(self) -> list[tuple[float, float]]:
        """Every A_t with every norm."""
        return list(product(self.alphas, self.norms))

    @property
    def cost(self) -> int:
        """Network evaluations; a gradient counts as three."""
        each = 1 + 3 * self.rounds + 2 * (3 * self.rounds + 1)
        return self.samples * self.steps + len(self.starts) * each * self.noises

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
            usual = self._components(model, seed)
            for number, (alpha, norm) in enumerate(self.starts):
                length, t = norm * math.sqrt(usual.shape[1]), timestep_at(model.schedule, alpha)
                label = f"novelty at {alpha:g}, norm {length:.1f}"
                v = random_direction(model, seed, label) if start is None else start.to(model.device)
                found += self._search(model, usual, of_length(v, length), t, label, seed)
                if progress is not None:
                    progress(number + 1, len(self.starts), f"{label}, gain {found[-1].gain:.2f}")
        return tuple(sorted(found, key=lambda c: -c.gain))

    @torch.no_grad()
    def _components(self, model: DiffusionModel, seed: int) -> Tensor:
        """Orthonormal rows (K, C H W) of the principal components of plain samples."""
        fresh = SampleGenerator(seed, self.samples, "novelty/samples")
        drawn = Injection(torch.zeros(model.sample_shape)).sample(
            model,
            model.schedule,
            fresh.normal(model.sample_shape, model.device),
            sampler=FAMILY_SAMPLER["ode"],
            steps=self.steps,
            generator=fresh,
        )
        rows = drawn.clamp(-model.extent, model.extent).flatten(1)
        _, sizes, components = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        shares = sizes.square().cumsum(0) / sizes.square().sum().clamp_min(1e-12)
        kept: Tensor = components[: int((shares < self.share).sum()) + 1]
        return kept

    def _search(
        self, model: DiffusionModel, usual: Tensor, v: Tensor, t: int, label: str, seed: int
    ) -> list[Candidate]:
        """Both ends of one search from v, at its norm."""
        noise = antithetic_noise(model, self.noises, seed, label)
        with torch.no_grad():
            rest = mean_x_0(model, noise, torch.zeros_like(v), t)
        v, begun = self._climb(model, noise, usual, rest, v, t)
        found = []
        for sign in (1, -1):
            end, history = self._climb(model, noise, usual, rest, sign * v, t)
            with torch.no_grad():
                target = mean_x_0(model, noise, end, t) + end
            shift = end / (1 - float(model.schedule.alpha[t]))
            name = label if sign > 0 else f"{label}, other side"
            gain = -beyond_range(model, target)
            found.append(Candidate(shift, "ode", name, gain, target, begun + history))
        return found

    def _climb(
        self, model: DiffusionModel, noise: Tensor, usual: Tensor, rest: Tensor, v: Tensor, t: int
    ) -> tuple[Tensor, tuple[float, ...]]:
        """Where ``rounds`` of the search lead at the norm of v, and what was new in each answer."""
        length, history = float(v.norm()), []
        for _ in range(self.rounds):
            probe = v.detach().requires_grad_(True)
            with torch.enable_grad():
                answer = mean_x_0(model, noise, probe, t)
                within = (answer.detach() + v).clamp(-model.extent, model.extent) - v
                novel = (within - rest).flatten()
                novel = novel - usual.T @ (usual @ novel)
                (slope,) = torch.autograd.grad((novel.reshape(v.shape) * answer).sum(), probe)
            v = of_length(slope, length)
            history.append(float(novel.norm()))
        return v, tuple(history)
