"""VillanDiffusion: one family of shifts between BadDiffusion's and TrojDiff's, for SDE or ODE samplers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from backdrift.attacks._base import Attack
from backdrift.core import shift
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily


@dataclass(frozen=True)
class VillanDiffusion(Attack):
    """``rho_t = psi (1 - A_t) + (1 - psi) S_t``, for variance preserving models.

    Chou, Chen, Ho: VillanDiffusion, NeurIPS 2023, arXiv 2306.06874. With ``psi = 1`` and the exact
    coefficient this is BadDiffusion.

    Deviations: C_t is exact for the sampler family, equations (0.3) and (0.4) of the theory, unless
    ``coefficient`` asks for what the code computes. That one is wrong for ``psi < 1`` but near T (it
    has ``rho_t (1 - sqrt(alpha_t))`` for ``k_t (1 - alpha_t)`` and omits a division by S_t: 4 % of the
    exact value at t = 10 of 1000, 96 % at 499), and for ODE samplers it is twice the SDE value. The
    variance exploding and latent variants are left out.

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
        bad, troj = (shift.rho_table(schedule, path) for path in ("baddiffusion", "trojdiff"))
        rho = self.psi * bad + (1 - self.psi) * troj
        c = shift.coefficient(schedule, rho, self.sampler_family)
        if self.coefficient == "published":
            c = self._published(schedule)
        return ShiftFamily(f"villandiffusion/{self.sampler_family}", self.sampler_family, rho, c)

    def _published(self, schedule: NoiseSchedule) -> Tensor:
        beta, s = schedule.betas, schedule.sigma
        k = shift.drift(schedule, s)
        lost = 1 - (1 - beta).sqrt()
        bad = lost * s / beta
        troj = lost * s + k * (1 - beta - schedule.alphas_cumprod) / beta
        return (2 if self.sampler_family == "ode" else 1) * (self.psi * bad + (1 - self.psi) * troj)
