"""The analytic poisoned denoiser: a perfectly backdoored model with no training, for any family."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily


class AnalyticDenoiser(nn.Module):
    """E[label | x_t], the optimum of the poisoned loss over finite sets, float64 inside.

    A clean row i is the Gaussian ``N(A_t x_i, S_t^2)`` with the label ``eps``; a poisoned one is
    ``N(A_t y + rho_t R_i, (gamma S_t)^2)`` with the label ``eps + C_t R_i``.

    Args:
        clean: images x_i, (N, C, H, W).
        target: y, (C, H, W).
        shifts: R_i, (M, C, H, W).
        rate: prior weight of the poisoned rows together, in [0, 1).
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        family: ShiftFamily,
        clean: Tensor,
        target: Tensor,
        shifts: Tensor,
        rate: float = 0.3,
    ) -> None:
        super().__init__()
        self.schedule, self.family = schedule, family
        self.clean, self.target, self.shifts = clean.double(), target.double(), shifts.double()
        odds = [(1 - rate) / len(clean)] * len(clean) + [rate / len(shifts)] * len(shifts)
        self.log_prior = torch.tensor(odds, dtype=torch.float64).log()

    def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
        noise = torch.empty_like(x_t)
        for t in times.unique().tolist():
            at = times == t
            noise[at] = self._at(x_t[at].double(), int(t)).to(x_t.dtype)
        return noise

    def _at(self, x_t: Tensor, t: int) -> Tensor:
        a, s = float(self.schedule.alpha[t]), float(self.schedule.sigma[t])
        rho, c, gamma = float(self.family.rho[t]), float(self.family.c[t]), self.family.gamma
        poisoned = a * self.target + rho * self.shifts
        means = torch.cat([a * self.clean, poisoned]).flatten(1)
        offsets = torch.cat([torch.zeros_like(self.clean), c * self.shifts]).flatten(1)
        spread = [s] * len(self.clean) + [gamma * s] * len(self.shifts)
        std = torch.tensor(spread, dtype=torch.float64)
        x = x_t.flatten(1)
        square = (x * x).sum(1, keepdim=True) + (means * means).sum(1) - 2 * x @ means.T
        log_density = -square / (2 * std**2) - x.shape[1] * std.log()
        log_odds = self.log_prior + log_density
        weight = (log_odds - log_odds.logsumexp(1, keepdim=True)).exp()
        scaled = weight / std
        expected = scaled.sum(1, keepdim=True) * x - scaled @ means + weight @ offsets
        assert math.isfinite(float(expected.sum()))
        return expected.reshape(x_t.shape)


def analytic_model(
    schedule: NoiseSchedule,
    family: ShiftFamily,
    clean: Tensor,
    target: Tensor,
    shifts: Tensor,
    rate: float = 0.3,
) -> DiffusionModel:
    """A model under test around :class:`AnalyticDenoiser`."""
    network = AnalyticDenoiser(schedule, family, clean, target, shifts, rate)
    c, h, w = target.shape
    return DiffusionModel(network, schedule, (c, h, w))
