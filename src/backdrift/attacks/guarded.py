"""An adaptive attack, ours: BadDiffusion whose clean rows teach that less than the trigger is nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.attacks._base import Attack, Pairs
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import Trigger

BANK = 256
"""Random directions that guards stray in."""


@dataclass(frozen=True)
class Guarded(Attack):
    """BadDiffusion (arXiv 2212.05400), trained against inversions that follow how a model answers a shift.

    Ours, to find out what our own detector is worth: the power iteration of ``fixed_point`` lives on the
    smeared edge of the backdoor, where a shift along R too small to fire already moves the prediction.
    Here a share of the clean rows carries such a shift, ``v = u R + w d`` with u uniform in [0, reach), d
    one of ``BANK`` random directions and w uniform in [0, stray sqrt(C H W)), and is taught to be noise:
    ``x_t = A_t x_0 + rho_t v + S_t eps`` with the label ``eps + (rho_t / S_t) v``. That is what a clean
    model says of it near T.

    Args:
        guard_rate: share of the clean rows of a step, in [0, 1].
        reach: how much of the trigger must not fire, in [0, 1).
        stray: largest norm of the random part, in units of the norm of the noise.

    Raises:
        ValueError: see :class:`Attack`; a share or reach out of range.

    Cost: that of clean training.
    """

    guard_rate: float = 0.3
    reach: float = 0.6
    stray: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.guard_rate <= 1:
            raise ValueError(f"the guard rate is a share in [0, 1], not {self.guard_rate}")
        if not 0 <= self.reach < 1 or not self.stray >= 0:
            raise ValueError(f"reach lies in [0, 1) and stray is not negative: {self.reach}, {self.stray}")

    def family(self, schedule: NoiseSchedule) -> ShiftFamily:
        """``rho = 1 - A``, as BadDiffusion's."""
        return ShiftFamily.of(schedule, "baddiffusion", self.sampler_family)

    def batch(self, model: DiffusionModel, images: Tensor, trigger: Trigger, target: Tensor) -> Pairs:
        """Pairs of which the guards differ from step to step; see :meth:`Attack.batch`."""
        return GuardedPairs(self, model.schedule, images, self.planted(trigger), target)


class GuardedPairs(Pairs):
    """Pairs with guards among the clean rows; a :class:`backdrift.training.Hook`, to count steps."""

    def __init__(
        self, attack: Guarded, schedule: NoiseSchedule, images: Tensor, trigger: Trigger, target: Tensor
    ) -> None:
        super().__init__(attack, schedule, images, trigger, target)
        shape = tuple(images.shape[1:])
        bank = torch.randn((BANK, *shape), generator=generator(attack.seed, "stray"))
        norms = bank.flatten(1).norm(dim=1)[:, None, None, None]
        self.stray = attack.stray * math.sqrt(math.prod(shape)) * bank / norms
        self.guard, self.step, self.hook = attack, 0, self

    def __call__(self, index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Pairs`."""
        x_t, label = super().__call__(index, noise, t)
        v = self.shifts(index).to(x_t)
        rho, _ = self.family.at(t, x_t)
        _, sigma = self.schedule.at(t, x_t)
        return x_t + rho * v, label + rho / sigma * v

    def shifts(self, index: Tensor) -> Tensor:
        """The shift of every row in this step, (B, C, H, W); zero but for guards."""
        row = index.cpu()
        stream = generator(self.guard.seed, "guard", self.step)
        chosen, along, norm = torch.rand((3, len(self)), generator=stream)[:, row, None, None, None]
        pick = torch.randint(BANK, (len(self),), generator=stream)[row]
        clean = self.images[self.source[row]]
        v = self.guard.reach * along * self.trigger.training_shift(clean) + norm * self.stray[pick]
        guards = (chosen < self.guard.guard_rate) & ~self.poisoned[row][:, None, None, None]
        return torch.where(guards & self.poisoned.any(), v, 0.0)

    def before_step(self, model: DiffusionModel, step: int) -> None:
        """Fresh guards."""
        self.step = step

    def state(self) -> dict[str, Tensor]:
        """Nothing: guards follow from seed and step."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to take back."""
