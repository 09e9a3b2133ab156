"""How a trigger enters a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backdrift.core.hooks import SamplingHook
from backdrift.core.model import Denoiser
from backdrift.core.sampling import PostStep, sample
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

    def sample(
        self,
        model: Denoiser,
        schedule: NoiseSchedule,
        noise: Tensor,
        *,
        hook: SamplingHook | None = None,
        **options: Any,
    ) -> Tensor:
        """Samples with the trigger, (B, C, H, W), not clamped.

        Args:
            noise: what a clean sample would start from, standard normal, (B, C, H, W).
            hook: a countermeasure; it sees the start with the trigger in it.
            options: of :func:`backdrift.core.sampling.sample`. With a scale of the noise its ``post_step``
                sees the ordinary process, ``(x_t - S_t r) / gamma``.

        Raises:
            ValueError: a hook that clips, and an attack that draws by its own sampler; what
                :func:`backdrift.core.sampling.sample` raises.
        """
        if hook is not None and hook.clips:
            if self.noise_scale is not None:
                raise ValueError(f"{hook.name}: this attack draws by its own sampler, which does not clip")
            options |= {"clip_x0": hook.clip_x0, "post_step": _both(options.get("post_step"), hook)}
        start = _unchanged if hook is None or hook.start is None else hook.start
        shift = self.shift.to(noise)
        if self.noise_scale is None:
            return sample(model, schedule, start(noise + shift), **options)
        scale, last = self.noise_scale.to(noise), float(schedule.sigma[-1])
        if start is not _unchanged:
            noise = (start(scale * noise + last * shift) - last * shift) / scale
        own = biased_denoiser(model, schedule, self.shift, scale)
        return scale * sample(own, schedule, noise, **options)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _both(first: PostStep | None, hook: SamplingHook) -> PostStep | None:
    """The hook's change of a step, and then what somebody else wants to see of it."""
    then = hook.post_step
    if first is None or then is None:
        return first or then
    return lambda x, t: first(then(x, t), t)
