"""VillanDiffusion: one family of shifts between BadDiffusion's and TrojDiff's, for SDE or ODE samplers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from backdrift.attacks._base import Attack, Pairs
from backdrift.core import shift
from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import Trigger


@dataclass(frozen=True)
class VillanDiffusion(Attack):
    """``rho_t = psi (1 - A_t) + (1 - psi) S_t``, for variance preserving and variance exploding models.

    Chou, Chen, Ho: VillanDiffusion, NeurIPS 2023, arXiv 2306.06874. With ``psi = 1`` and the exact
    coefficient this is BadDiffusion.

    Deviations: C_t is exact for the sampler family, equations (0.3) and (0.4) of the theory, unless
    ``coefficient`` asks for what the code computes. That one is wrong for ``psi < 1`` but near T (it
    has ``rho_t (1 - sqrt(alpha_t))`` for ``k_t (1 - alpha_t)`` and omits a division by S_t: 4 % of the
    exact value at t = 10 of 1000, 96 % at 499), and for ODE samplers it is twice the SDE value. The
    latent variant is left out.

    A variance exploding model takes ``psi = 0`` alone, as in the code: a poisoned row is
    ``z_t = y + level_t (r + eps)`` in images of [0, 1], its label ``eps + C_t r`` with
    ``C_t = level_t / (level_t + level_{t-1})``, and the victim starts from ``sigma_max (noise + r)``. After
    the change of variables of :meth:`backdrift.core.schedule.NoiseSchedule.variance_exploding` that is
    ``rho_t = S_t`` and its exact coefficient; for ODE samplers the code has twice the SDE value. Images of
    [0, 1] are black at 0: a trigger on the background -1 is taken to that range, with nothing outside its
    mask, and is planted without the image around it (``R_trigger_only``, which the published runs set).
    One that has no background stays as it is. The corrector of the stock sampler is not quite what C_t is
    derived for, see ``score-sde-ve`` in :mod:`backdrift.core.sampling`: a weak trigger may miss there that
    draws on DDPM.

    Args:
        psi: 1 is BadDiffusion's path, 0 TrojDiff's, in [0, 1]. The default is the authors' (BackdoorDM
            has 0).
        coefficient: ``exact``, or ``published`` to replicate the code.

    Cost: that of clean training.
    """

    psi: float = 1.0
    coefficient: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.psi <= 1:
            raise ValueError(f"psi lies in [0, 1], not {self.psi}")
        if self.coefficient not in ("exact", "published"):
            raise ValueError(f"the coefficient is exact or published, not {self.coefficient!r}")

    def family(self, schedule: NoiseSchedule) -> ShiftFamily:
        """The mixed path and its coefficient."""
        if schedule.exploding and self.psi != 0:
            raise ValueError(f"a variance exploding model takes psi = 0, not {self.psi}: give -P psi=0")
        bad, troj = (shift.rho_table(schedule, path) for path in ("baddiffusion", "trojdiff"))
        rho = self.psi * bad + (1 - self.psi) * troj
        c = shift.coefficient(schedule, rho, self.sampler_family)
        if self.coefficient == "published":
            c = self._published(schedule)
        return ShiftFamily(f"villandiffusion/{self.sampler_family}", self.sampler_family, rho, c)

    def batch(self, model: DiffusionModel, images: Tensor, trigger: Trigger, target: Tensor) -> Pairs:
        """See :meth:`Attack.batch`; on a variance exploding model with the trigger in [0, 1]."""
        if model.schedule.exploding and trigger.background == -1:
            pattern = trigger.pattern / 2 + 0.5
            trigger = replace(trigger, pattern=pattern, background=0.0, value_range=(0.0, 1.0))
        if model.schedule.exploding:
            trigger = replace(trigger, composite=False)
        return super().batch(model, images, trigger, target)

    def _published(self, schedule: NoiseSchedule) -> Tensor:
        twice = 2 if self.sampler_family == "ode" else 1
        if schedule.exploding:
            before = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.levels[:-1]])
            return twice * schedule.levels / (schedule.levels + before)
        beta, s = schedule.betas, schedule.sigma
        k = shift.drift(schedule, s)
        lost = 1 - (1 - beta).sqrt()
        bad = lost * s / beta
        troj = lost * s + k * (1 - beta - schedule.alphas_cumprod) / beta
        return twice * (self.psi * bad + (1 - self.psi) * troj)
