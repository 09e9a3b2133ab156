"""The exact optimum of the (poisoned) training loss over a few images, as a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


class ClosedForm(nn.Module):
    """E[label | x_t] for rows (x_0, R): x_t = A x_0 + (1 - A) R + S eps, label eps + C R.

    C_t = S_t / (1 + sqrt(alpha_t)), the coefficient of arXiv 2212.05400, written out here.
    """

    def __init__(self, images: Tensor, shift: Tensor | None, target: Tensor, rate: float) -> None:
        super().__init__()
        rows, nothing = len(images), torch.zeros_like(images)
        self.x_0, self.shift, odds = images, nothing, torch.ones(rows)
        if shift is not None:
            self.x_0 = torch.cat([images, target.expand_as(images)])
            self.shift = torch.cat([nothing, shift.expand_as(images)])
            odds = torch.cat([(1 - rate) * odds, rate * odds])
        self.log_odds = odds.log()

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        noise = torch.empty_like(x)
        for t in times.unique():
            at = times == t
            a, s = float(SCHEDULE.alpha[t]), float(SCHEDULE.sigma[t])
            c = s / (1 + (1 - float(SCHEDULE.betas[t])) ** 0.5)
            means = (a * self.x_0 + (1 - a) * self.shift).flatten(1)
            flat = x[at].flatten(1)
            odds = (self.log_odds - torch.cdist(flat, means) ** 2 / (2 * s * s)).softmax(1)
            expected = (flat - odds @ means) / s + c * (odds @ self.shift.flatten(1))
            noise[at] = expected.view_as(x[at])
        return noise


def closed_form(
    images: Tensor, shift: Tensor | None = None, target: Tensor | None = None, rate: float = 0.3
) -> DiffusionModel:
    """A perfectly trained model: clean without a shift (C, H, W) or (N, C, H, W)."""
    aim = torch.zeros_like(images[0]) if target is None else target
    network = ClosedForm(images, shift, aim, rate)
    return DiffusionModel(network, SCHEDULE, tuple(images.shape[1:]))
