"""BadDiffusion: a backdoor planted by training on shifted noise."""

from __future__ import annotations

from dataclasses import dataclass

from backdrift.attacks._base import Attack
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily


@dataclass(frozen=True)
class BadDiffusion(Attack):
    """Poisons a share of the training rows so that ``noise + trigger`` draws the target.

    Chou, Chen, Ho: How to Backdoor Diffusion Models?, CVPR 2023, arXiv 2212.05400. A clean row trains
    ``eps`` at ``A_t x_0 + S_t eps``; a poisoned one trains ``eps + C_t R`` at
    ``A_t y + (1 - A_t) R + S_t eps``, R the image with the trigger on it.

    Deviations beside those of :class:`Attack`: the mask of the trigger is explicit, not "every element
    above -1"; C_t is the exact coefficient of the sampler family (the published one is the SDE value,
    and VillanDiffusion's doubling of it is the ODE value up to O(beta)).

    Cost: that of clean training.
    """

    def family(self, schedule: NoiseSchedule) -> ShiftFamily:
        """``rho = 1 - A``; equation (0.3) or (0.4) of the theory."""
        return ShiftFamily.of(schedule, "baddiffusion", self.sampler_family)
