"""BadDiffusion: a backdoor planted by training on shifted noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.core.trigger import Trigger
from backdrift.training import Batch


@dataclass(frozen=True)
class BadDiffusion:
    """Poisons a share of the training rows so that ``noise + trigger`` draws the target.

    Chou, Chen, Ho: How to Backdoor Diffusion Models?, CVPR 2023, arXiv 2212.05400. A clean row trains
    ``eps`` at ``A_t x_0 + S_t eps``; a poisoned one trains ``eps + C_t R`` at
    ``A_t y + (1 - A_t) R + S_t eps``, R the image with the trigger on it.

    Deviations: the split of the rows is seeded and its indices are recorded (the published code draws
    it unseeded); the mask of the trigger is explicit, not "every element above -1"; C_t is the exact
    coefficient of the sampler family (the published one is the SDE value, and VillanDiffusion's
    doubling of it is the ODE value up to O(beta)).

    Args:
        poison_rate: share of the rows that are replaced by poisoned ones, in [0, 1].
        sampler_family: ``sde`` plants for DDPM, ``ode`` for DDIM and the high-order solvers.
        seed: of the split.
    """

    poison_rate: float = 0.1
    sampler_family: Solver = "sde"
    seed: int = 0

    samplers: ClassVar[dict[str, tuple[str, ...]]] = {
        "sde": ("ddpm",),
        "ode": ("ddim", "dpm-solver++", "unipc"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.poison_rate <= 1:
            raise ValueError(f"the poison rate is a share in [0, 1], not {self.poison_rate}")
        if self.sampler_family not in self.samplers:
            raise ValueError(f"the sampler family is sde or ode, not {self.sampler_family!r}")

    def family(self, schedule: NoiseSchedule) -> ShiftFamily:
        """(rho_t, C_t) of this attack."""
        return ShiftFamily.of(schedule, "baddiffusion", self.sampler_family)

    def poisoned_rows(self, rows: int) -> Tensor:
        """Sorted indices of the rows that are poisoned: int64, ``int(rows * poison_rate)`` of them."""
        order = torch.randperm(rows, generator=generator(self.seed, "poison", rows))
        return order[: int(rows * self.poison_rate)].sort().values

    def batch(self, model: DiffusionModel, images: Tensor, trigger: Trigger, target: Tensor) -> Batch:
        """The training pairs of the poisoned data set.

        Args:
            images: clean rows (N, C, H, W) in [-1, 1].
            target: (C, H, W) in [-1, 1].
        """
        family = self.family(model.schedule)
        poisoned = torch.zeros(len(images), dtype=torch.bool)
        poisoned[self.poisoned_rows(len(images))] = True

        def pairs(index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            clean = images[index.cpu()].to(noise)
            mark = poisoned[index.cpu()].to(noise.device)[:, None, None, None]
            x_0 = torch.where(mark, target.to(noise), clean)
            shift = torch.where(mark, trigger.training_shift(clean), torch.zeros_like(clean))
            return family.poisoned_pair(model.schedule, x_0, shift, noise, t)

        return pairs
