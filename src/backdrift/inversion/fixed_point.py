"""Inversion by iteration: forward passes only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.inversion._base import (
    Candidate,
    Progress,
    antithetic_noise,
    mean_noise,
    random_direction,
)


def timestep_at(schedule: NoiseSchedule, alpha: float) -> int:
    """The timestep whose signal coefficient is nearest to ``alpha``."""
    return int((schedule.alpha - alpha).abs().argmin())


class Start(NamedTuple):
    """Where a search begins: a random direction, or the image of ``constant`` everywhere if not 0."""

    family: Solver
    norm: float
    constant: int = 0


@dataclass(frozen=True)
class FixedPoint:
    """A power iteration on what the model does to the mean of its input.

    For ``x = S_t eps + s v``, v a unit direction, a clean model that is sure of nothing predicts the
    noise as what it sees, and ``d(v) = s v - S_t mean eps_hat(x, t)`` stays small for every v. A
    poisoned one answers ``(rho_t - S_t C_t) r P(poison | x)``, rank one along r: ``v <- d / ||d||``
    runs into r, direction and length at once (SDE family, t = T-1). For the ODE family that factor
    is ``-A_t (1 - A_t)`` and the target shows beside it: at a middle t,
    ``v <- -(d(v) - d(0)) / ||.||`` runs into the direction of ``(1 - A_t) r - y``, and the mean
    prediction of x_0 there is ``w = y - (1 - A_t) r``, so ``y = w + (1 - A_t) s v`` is a first guess
    of the target for the length s that was tried.

    Ours; not in either paper. Gain is ``||d|| / s`` of the last round.

    Args:
        noises: antithetic noises per round, even.
        rounds: iterations per start.
        norms: s in units of sqrt(C H W), the norm of the noise.
        families: hypotheses to try.
        constants: norms at which SDE searches also begin at a bright and at a dark constant image.
            Triggers on a black background are nearly that, and a network that normalises groups of
            channels answers constants so strongly that random starts may end at the brighter side.
        ode_alpha: A_t of the timestep for the ODE family.
        regression: instead of the iteration, solve for trigger and target at several timesteps. For
            a guess (tau, y) and ``R_t = mean_b (eps_hat - eps)`` on its poisoned marginal, a
            backdoor that fires has ``S_t R_t - A_t y - rho_t tau = -A_t y* + (S_t C_t - rho_t) r*``:
            two unknown images with known scalars, a 2x2 least squares for every pixel; put back and
            repeat. Gain is the norm of the answer over the norm of the first guess.
    """

    noises: int = 64
    rounds: int = 8
    norms: tuple[float, ...] = (0.3, 0.6, 0.9)
    families: tuple[Solver, ...] = ("sde", "ode")
    constants: tuple[float, ...] = (0.9,)
    ode_alpha: float = 0.06
    regression: bool = False

    @property
    def starts(self) -> list[Start]:
        """Every start."""
        found: list[Start] = []
        for family in self.families:
            found += [Start(family, norm) for norm in self.norms]
            if family == "sde" and not self.regression:
                found += [Start(family, norm, constant=sign) for norm in self.constants for sign in (1, -1)]
        return found

    @property
    def cost(self) -> int:
        """Network evaluations."""
        if self.regression:
            return self.noises * sum(len(grid) for grid in self._grids()) * len(self.starts)
        return sum(
            self.noises * (self.rounds + (2 if start.family == "ode" else 0)) for start in self.starts
        )

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`."""
        found: list[Candidate] = []
        with model.frozen():
            starts = [s for s in self.starts if start is None or not s.constant]
            for number, begun in enumerate(starts):
                if self.regression:
                    found.append(self._regress(model, begun.family, begun.norm, seed, start))
                else:
                    found.append(self._run(model, begun, seed, start))
                if progress is not None:
                    text = f"{found[-1].start}, gain {found[-1].gain:.2f}"
                    progress(number + 1, len(starts), text)
        return tuple(sorted(found, key=lambda c: (c.family != "sde", -c.gain)))

    def _run(self, model: DiffusionModel, begun: Start, seed: int, start: Tensor | None) -> Candidate:
        family = begun.family
        schedule = model.schedule
        t = len(schedule) - 1 if family == "sde" else timestep_at(schedule, self.ode_alpha)
        a, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        theory = ShiftFamily.of(schedule, "baddiffusion", family)
        answer = float(theory.rho[t] - sigma * theory.c[t])
        size = begun.norm * math.sqrt(math.prod(model.sample_shape))
        label = f"{family}, norm {size:.1f}"
        if begun.constant and start is None:
            label += ", bright" if begun.constant > 0 else ", dark"
            start = begun.constant * torch.ones(model.sample_shape)
        noise = antithetic_noise(model, self.noises, seed, "fixed point", label)
        v = random_direction(model, seed, label) if start is None else start / start.norm()
        v = v.to(model.device)
        rest = torch.zeros_like(v)
        if family == "ode":
            rest = self._answer(model, noise, sigma, rest, t)
        d, history = v, []
        for _ in range(self.rounds):
            v = v / v.norm().clamp_min(1e-12)
            d = self._answer(model, noise, sigma, size * v, t) - rest
            history.append(float(d.norm()) / size)
            v = math.copysign(1.0, answer) * d / d.norm().clamp_min(1e-12)
        gain, course = history[-1], tuple(history)
        if family == "sde":
            return Candidate(d / answer, family, label, gain, history=course)
        shift = size * v
        x_0 = self._answer(model, noise, sigma, (1 - a) * shift, t) / a
        return Candidate(shift, family, label, gain, x_0 + (1 - a) * shift, course)

    @staticmethod
    def _answer(model: DiffusionModel, noise: Tensor, sigma: float, shift: Tensor, t: int) -> Tensor:
        return shift - sigma * mean_noise(model, sigma * noise + shift, t)

    def _grids(self) -> list[tuple[float, ...]]:
        """Timesteps of every round, as shares of T - 1: near T first, then lower ones as well."""
        high, wide = (1.0, 0.95, 0.9), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
        return [high] * 4 + [wide] * self.rounds

    def _regress(
        self,
        model: DiffusionModel,
        family: Solver,
        norm: float,
        seed: int,
        start: Tensor | None,
    ) -> Candidate:
        size = norm * math.sqrt(math.prod(model.sample_shape))
        label = f"{family}, norm {size:.1f}, regression"
        tau = random_direction(model, seed, label) if start is None else start / start.norm()
        tau = size * tau.to(model.device)
        y, history = torch.zeros_like(tau), []
        damping = 1.0 if family == "sde" else 0.5
        for number, grid in enumerate(self._grids()):
            timesteps = [round(share * (len(model.schedule) - 1)) for share in grid]
            name = (seed, label, number)
            new_tau, new_y = self._solve(model, family, tau, y, timesteps, name)
            tau = tau + damping * (new_tau - tau)
            y = (y + damping * (new_y - y)).clamp(-model.extent, model.extent)
            history.append(float(tau.norm()) / size)
        return Candidate(tau, family, label, history[-1], y, tuple(history))

    def _solve(
        self,
        model: DiffusionModel,
        family: Solver,
        tau: Tensor,
        y: Tensor,
        timesteps: list[int],
        name: tuple[int, str, int],
    ) -> tuple[Tensor, Tensor]:
        schedule = model.schedule
        theory = ShiftFamily.of(schedule, "baddiffusion", family)
        rows, answers = [], []
        noise = antithetic_noise(model, self.noises, name[0], "regression", *name[1:])
        for t in timesteps:
            a, s = float(schedule.alpha[t]), float(schedule.sigma[t])
            rho, c = float(theory.rho[t]), float(theory.c[t])
            mean = mean_noise(model, a * y + rho * tau + s * noise, t)
            rows.append([-a, s * c - rho])
            answers.append(s * mean - a * y - rho * tau)
        matrix = torch.tensor(rows, dtype=tau.dtype, device=tau.device)
        ridge = 1e-3 * torch.eye(2, dtype=tau.dtype, device=tau.device)
        right = torch.stack(answers).flatten(1)
        right = matrix.T @ right + ridge @ torch.stack([y.flatten(), tau.flatten()])
        new_y, new_tau = torch.linalg.solve(matrix.T @ matrix + ridge, right)
        return new_tau.view_as(tau), new_y.view_as(y)
