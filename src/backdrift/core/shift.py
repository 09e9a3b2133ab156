"""The one theory of noise-trigger backdoors: how far a trigger moves x_t and the label.

Poisoned marginal (BadDiffusion, TrojDiff, VillanDiffusion, invisible triggers alike)::

    x_t = A_t y + rho_t r + S_t gamma eps,   A_t = sqrt(abar_t), S_t = sqrt(1 - abar_t)

and, for the victim's unmodified sampler, the label ``eps + C_t r``. C_t follows from rho, from the
noise schedule and from the kind of sampler; it is what PureDiffusion (arXiv 2502.19047) calls the
trigger-shift scale lambda_t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backdrift.core.model import Denoiser
from backdrift.core.schedule import NoiseSchedule

Solver = Literal["sde", "ode"]
ShiftPath = Literal["baddiffusion", "trojdiff"]


def rho_table(schedule: NoiseSchedule, path: ShiftPath) -> Tensor:
    """rho_t, float64, shape (T,): ``1 - A_t`` (BadDiffusion) or ``S_t`` (TrojDiff)."""
    return 1 - schedule.alpha if path == "baddiffusion" else schedule.sigma.clone()


def _with_previous(table: Tensor, timesteps: Sequence[int], first: float) -> tuple[Tensor, Tensor]:
    order = torch.as_tensor(sorted(timesteps), dtype=torch.long)
    now = table[order]
    return now, torch.cat([torch.tensor([first], dtype=torch.float64), now[:-1]])


def drift(schedule: NoiseSchedule, rho: Tensor, timesteps: Sequence[int] | None = None) -> Tensor:
    """h_t = rho_t - (A_t / A_p) rho_p, p the previous kept timestep; ``rho_{-1} = 0``.

    Args:
        rho: table of shape (T,).
        timesteps: the kept timesteps, ascending order is restored; all of them by default.

    Returns:
        float64, one value per kept timestep in ascending order.
    """
    kept = range(len(schedule)) if timesteps is None else timesteps
    a, a_p = _with_previous(schedule.alpha, kept, 1.0)
    r, r_p = _with_previous(rho, kept, 0.0)
    return r - a / a_p * r_p


def coefficient(
    schedule: NoiseSchedule, rho: Tensor, solver: Solver, timesteps: Sequence[int] | None = None
) -> Tensor:
    """C_t: how much of r the network must add to its noise prediction.

    SDE samplers (DDPM): ``C_t = h_t S_t / (1 - abar_t / abar_p)``. ODE samplers (DDIM with eta 0
    and the high-order solvers), exact for one step t -> p::

        C_t = (rho_t A_p - rho_p A_t) / (S_t A_p - S_p A_t)

    which stays finite at A_t = 0. With every timestep kept these are equations (0.3) and (0.4) of
    the theory; with a stride they are what a network would have to say for that stride.

    Returns:
        float64, one value per kept timestep in ascending order.
    """
    kept = range(len(schedule)) if timesteps is None else timesteps
    a, a_p = _with_previous(schedule.alpha, kept, 1.0)
    s, s_p = _with_previous(schedule.sigma, kept, 0.0)
    r, r_p = _with_previous(rho, kept, 0.0)
    if solver == "sde":
        return drift(schedule, rho, kept) * s / (1 - (a / a_p) ** 2)
    return (r * a_p - r_p * a) / (s * a_p - s_p * a)


@dataclass(frozen=True, eq=False)
class ShiftFamily:
    """One way to poison: (rho_t, C_t, gamma) over all timesteps of a schedule.

    Args:
        name: for records, for example ``baddiffusion/sde``.
        solver: the kind of sampler that C_t is derived for.
        rho: shift of x_t per unit of r, float64, shape (T,).
        c: shift of the label per unit of r, float64, shape (T,).
        gamma: standard deviation of the poisoned noise; 1 but for TrojDiff.
    """

    name: str
    solver: Solver
    rho: Tensor
    c: Tensor
    gamma: float = 1.0

    @classmethod
    def of(cls, schedule: NoiseSchedule, path: ShiftPath, solver: Solver) -> ShiftFamily:
        """The exact family for a victim that runs an unmodified sampler."""
        rho = rho_table(schedule, path)
        return cls(f"{path}/{solver}", solver, rho, coefficient(schedule, rho, solver))

    @classmethod
    def biased(cls, schedule: NoiseSchedule, gamma: float) -> ShiftFamily:
        """TrojDiff (arXiv 2303.05762): rho = S, plain labels, noise times gamma, own sampler."""
        rho = rho_table(schedule, "trojdiff")
        return cls("trojdiff/biased", "sde", rho, torch.zeros_like(rho), gamma)

    def at(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(rho_t, C_t)`` in the dtype and on the device of ``like`` (B, ...), broadcastable."""
        index = torch.as_tensor(t, dtype=torch.long).cpu()
        view = (-1,) + (1,) * (like.ndim - 1)
        return (
            self.rho[index].to(like.device, like.dtype).reshape(view),
            self.c[index].to(like.device, like.dtype).reshape(view),
        )

    def poisoned_pair(
        self,
        schedule: NoiseSchedule,
        x_0: Tensor,
        shift: Tensor,
        noise: Tensor,
        t: Tensor,
        gamma: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Equation (0.1) and its label.

        Args:
            x_0: image of a clean row, target of a poisoned one; shape (B, C, H, W).
            shift: R of the row, zero for clean rows; shape (B, C, H, W).
            noise: standard normal, shape (B, C, H, W).
            t: timesteps, shape (B,).
            gamma: standard deviation of the noise where it is not the family's, broadcastable to
                ``noise``: 1 in clean rows and outside a patch.

        Returns:
            ``(x_t, label)``. Rows with ``shift = 0`` get the plain DDPM pair when gamma is 1.
        """
        rho, c = self.at(t, x_0)
        scale = self.gamma if gamma is None else gamma
        x_t = schedule.add_noise(x_0, scale * noise, t) + rho * shift
        return x_t, noise + c * shift


def biased_denoiser(
    model: Denoiser, schedule: NoiseSchedule, shift: Tensor, gamma: Tensor | float
) -> Denoiser:
    """TrojDiff's own sampler as an ordinary one, by a change of variables.

    With ``w_t = (x_t - S_t shift) / gamma`` the biased process is the ordinary process of
    ``x_0 / gamma``: run any stock sampler on w with this denoiser, from unit noise, and multiply
    the result by gamma. Exact for every eta and every stride, where the published update
    (its ``coef_miu``) holds for stride 1 only. Not valid together with a clipping hook that is
    not scaled by ``1 / gamma``.

    Args:
        shift: mu of the paper, shape (C, H, W).
        gamma: standard deviation of the poisoned starting noise, > 0; a number, or one per element,
            (C, H, W): with ``shift = 0`` and gamma 1 outside a patch this is the plain sampler there.
    """

    def denoise(w_t: Tensor, t: Tensor | int, /) -> Tensor:
        _, sigma = schedule.at(t, w_t)
        return model(gamma * w_t + sigma * shift.to(w_t), t)

    return denoise


def stride_corrected(
    model: Denoiser, schedule: NoiseSchedule, family: ShiftFamily, shift: Tensor, timesteps: Sequence[int]
) -> Denoiser:
    """What the model would have to say for a backdoor of ``family`` to survive a stride.

    A network trained for unit stride answers ``eps + C_t r``; a sampler that keeps only ``timesteps``
    would need the coefficient of that stride. With 25 of 1000 steps of DDPM the difference leaves up to
    .17 standard deviations of noise per unit of r in x_t, enough for a large trigger to miss. This adds
    the difference, so that a short chain does to the trigger what the victim's long one does.

    Args:
        shift: the trigger hypothesis, (C, H, W).
        timesteps: the kept ones.
    """
    kept = sorted(timesteps)
    wanted = coefficient(schedule, family.rho, family.solver, kept)
    missing = {t: float(c - family.c[t]) for t, c in zip(kept, wanted, strict=True)}

    def denoise(x_t: Tensor, t: Tensor | int, /) -> Tensor:
        return model(x_t, t) + missing[int(t)] * shift.to(x_t)

    return denoise
