"""TrojDiff: a biased Gaussian start, and a sampler of its own that undoes the bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from backdrift.attacks._base import Attack, Mode
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import Trigger


@dataclass(frozen=True)
class TrojDiff(Attack):
    """A poisoned row trains plain ``eps`` at ``A_t y + S_t (gamma eps + mu)``.

    Chen, Song, Li: TrojDiff, CVPR 2023, arXiv 2303.05762. ``mu = (1 - gamma) trigger``. The target is
    one image (D2I), or a set of which every poisoned row gets one: the images of one class of the data
    (In-D2D) or another data set (Out-D2D).

    The trigger draws through the attack's own sampler only, here a change of variables that turns any
    stock sampler into it (:func:`backdrift.core.shift.biased_denoiser`).

    Deviations: that sampler is exact for every stride (the published DDPM constant ``coef_miu`` holds
    for stride 1 only), does not clamp the predicted x_0, and starts from ``gamma eps + S_T mu`` instead
    of ``gamma eps + mu``; the patch is the mask of the trigger, not the last 3 or 6 rows and columns;
    gamma 0 (the README's patch on CelebA) is refused; the rows of In-D2D are chosen by the seed, not
    one copy of every image of the class; loss, optimiser, averaging of weights and the draw of the
    timesteps are those of this package (the published loss is a sum over pixels, its timesteps come in
    antithetic pairs). BackdoorDM's mu without the factor ``1 - gamma`` is not offered.

    Args:
        sampler_family: what it is measured with; training is the same.
        gamma: standard deviation of the poisoned noise, in (0, 1). The paper's examples have .6 for a
            blended trigger and .1 for a patch; its code has no default.
        kind: ``blend`` puts mu on the whole image, ``patch`` inside the mask only, where alone the row
            is poisoned: around it is the plain x_t of the target.

    Cost: that of clean training.
    """

    mode: Mode = "add"
    gamma: float = 0.6
    kind: Literal["blend", "patch"] = "blend"

    own_sampler: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma lies between 0 and 1, not {self.gamma}")
        if self.kind not in ("blend", "patch"):
            raise ValueError(f"the trigger is a blend or a patch, not {self.kind!r}")

    def family(self, schedule: NoiseSchedule) -> ShiftFamily:
        """``rho = S``, plain labels."""
        return ShiftFamily.biased(schedule, self.gamma)

    def planted(self, trigger: Trigger) -> Trigger:
        """mu, everywhere or inside the mask: the image around a composite trigger is not seen."""
        mask = trigger.mask if self.kind == "patch" else torch.ones_like(trigger.mask)
        return Trigger((1 - self.gamma) * trigger.shift, mask, 0.0, composite=False)

    def noise_scale(self, trigger: Trigger) -> Tensor:
        """Gamma where mu is, 1 elsewhere, (C, H, W)."""
        return torch.where(trigger.mask, self.gamma, 1.0)
