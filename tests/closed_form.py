"""Perfectly trained models: E[label | x_t] over finitely many rows, with no training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily
from backdrift.training import Batch

SCHEDULE = NoiseSchedule.linear()


class Rows(NamedTuple):
    """At one timestep: x_t of row i is ``mean_i + std_i noise``, its label ``noise + offset_i``.

    Float64: means and offsets (N, C, H, W), standard deviations (N, C, H, W) or (N, 1, 1, 1).
    """

    means: Tensor
    std: Tensor
    offsets: Tensor


class Optimum(nn.Module):
    """The minimum of the loss over those rows, float64 inside.

    Args:
        rows: what the rows are at a timestep.
        odds: prior weight of every row, (N,).
    """

    def __init__(self, rows: Callable[[int], Rows], odds: Tensor) -> None:
        super().__init__()
        self.rows = rows
        self.log_prior = (odds.double() / odds.double().sum()).log()

    def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
        noise = torch.empty_like(x_t)
        for t in times.unique().tolist():
            at = times == t
            noise[at] = self._at(x_t[at].double(), int(t)).to(x_t.dtype)
        return noise

    def _at(self, x_t: Tensor, t: int) -> Tensor:
        means, std, offsets = (part.flatten(1) for part in self.rows(t))
        x, inverse = x_t.flatten(1), 1 / std
        each = x.shape[1] // std.shape[1]
        power = x**2 if each == 1 else (x**2).sum(1, keepdim=True)
        scaled = means * inverse
        square = power @ (inverse**2).T - 2 * x @ (scaled * inverse).T + (scaled**2).sum(1)
        log_odds = self.log_prior - square / 2 - each * std.log().sum(1)
        weight = (log_odds - log_odds.logsumexp(1, keepdim=True)).exp()
        expected = (weight @ inverse) * x - weight @ scaled + weight @ offsets
        assert bool(expected.isfinite().all())
        return expected.reshape(x_t.shape)


def poisoned_optimum(
    schedule: NoiseSchedule,
    family: ShiftFamily,
    clean: Tensor,
    target: Tensor,
    shifts: Tensor,
    rate: float = 0.3,
) -> DiffusionModel:
    """The optimum for any family: a perfectly backdoored model.

    A clean row i is ``N(A_t x_i, S_t^2)`` with the label ``eps``; a poisoned one is
    ``N(A_t y + rho_t R_i, (gamma S_t)^2)`` with the label ``eps + C_t R_i``.

    Args:
        clean: images x_i, (N, C, H, W).
        target: y, (C, H, W).
        shifts: R_i, (M, C, H, W).
        rate: prior weight of the poisoned rows together, in [0, 1).
    """
    clean, target, shifts = clean.double(), target.double(), shifts.double()
    count, poisoned = len(clean), len(shifts)
    gamma = torch.tensor([1.0] * count + [family.gamma] * poisoned, dtype=torch.float64)

    def rows(t: int) -> Rows:
        a, s = float(schedule.alpha[t]), float(schedule.sigma[t])
        means = torch.cat([a * clean, a * target + float(family.rho[t]) * shifts])
        offsets = torch.cat([torch.zeros_like(clean), float(family.c[t]) * shifts])
        return Rows(means, (s * gamma).view(-1, 1, 1, 1), offsets)

    odds = torch.tensor([(1 - rate) / count] * count + [rate / poisoned] * poisoned)
    c, h, w = target.shape
    return DiffusionModel(Optimum(rows, odds), schedule, (c, h, w))


def optimum_of(
    batch: Batch, count: int, schedule: NoiseSchedule, shape: tuple[int, int, int]
) -> DiffusionModel:
    """The optimum of an attack's own training pairs, read off them: they are affine in the noise."""

    def rows(t: int) -> Rows:
        index, times = torch.arange(count), torch.full((count,), t)
        nothing = torch.zeros(count, *shape, dtype=torch.float64)
        means, offsets = batch(index, nothing, times)
        moved, _ = batch(index, nothing + 1, times)
        return Rows(means, moved - means, offsets)

    return DiffusionModel(Optimum(rows, torch.ones(count)), schedule, shape)


def closed_form(
    images: Tensor, shift: Tensor | None = None, target: Tensor | None = None, rate: float = 0.3
) -> DiffusionModel:
    """BadDiffusion on DDPM over the linear schedule; clean without a shift (C, H, W) or (N, C, H, W).

    C_t = S_t / (1 + sqrt(alpha_t)), the coefficient of arXiv 2212.05400, written out here.
    """
    nothing = torch.zeros_like(images[0])
    c = SCHEDULE.sigma / (1 + (1 - SCHEDULE.betas).sqrt())
    family = ShiftFamily("published", "sde", 1 - SCHEDULE.alpha, c)
    if shift is None:
        return poisoned_optimum(SCHEDULE, family, images, nothing, nothing[None], rate=0.0)
    shifts = shift.expand_as(images)
    return poisoned_optimum(SCHEDULE, family, images, nothing if target is None else target, shifts, rate)
