"""How a trigger enters a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backdrift.core.model import Denoiser
from backdrift.core.sampling import sample
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import biased_denoiser


@dataclass(frozen=True, eq=False)
class Injection:
    """A shift of the starting noise and, for an attack with a sampler of its own, the scale of that noise.

    Args:
        shift: r, added to the starting noise, (C, H, W).
        noise_scale: gamma of TrojDiff (arXiv 2303.05762), (C, H, W), > 0. With it the victim runs the
            attack's sampler, here the ordinary one after a change of variables
            (:func:`backdrift.core.shift.biased_denoiser`). None: any stock sampler as it is.
    """

    shift: Tensor
    noise_scale: Tensor | None = None

    def sample(self, model: Denoiser, schedule: NoiseSchedule, noise: Tensor, **options: Any) -> Tensor:
        """Samples with the trigger, (B, C, H, W), not clamped.

        Args:
            noise: what a clean sample would start from, standard normal, (B, C, H, W).
            options: of :func:`backdrift.core.sampling.sample`. With a scale of the noise its hooks see
                the ordinary process, ``(x_t - S_t r) / gamma``.
        """
        if self.noise_scale is None:
            return sample(model, schedule, noise + self.shift.to(noise), **options)
        scale = self.noise_scale.to(noise)
        own = biased_denoiser(model, schedule, self.shift, scale)
        return scale * sample(own, schedule, noise, **options)
