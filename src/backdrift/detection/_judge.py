"""What a shift of the starting noise makes a model draw, judged on fresh seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.model import Denoiser, DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import sample, strided_timesteps
from backdrift.core.shift import ShiftFamily, Solver, biased_denoiser, stride_corrected
from backdrift.core.trigger import unit
from backdrift.inversion._base import FAMILY_SAMPLER


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples of one shift: half to recover a target from, half to judge it.

    Args:
        samples: (2 n, C, H, W), not clamped; decoded where the model draws latents.
        target: recovered from the first half, (C, H, W) in [-1, 1].
        hit_rate: share of the second half within ``threshold`` of the target, in [0, 1].
        plain_rate: the same share of the plain samples of these seeds.
        threshold: MSE in [0, 1] units.
        spread: mean squared distance of the second half to its mean image, in [0, 1] units.
        beyond: what :func:`overshoot` says, (2 n,); None where the distance of samples says it itself.
    """

    samples: Tensor
    target: Tensor
    hit_rate: float
    plain_rate: float
    threshold: float
    spread: float
    beyond: Tensor | None = None

    def distance(self, target: Tensor) -> Tensor:
        """Of every sample to an image (C, H, W), what lies beyond the range counted in: (2 n,)."""
        apart = distance(self.samples, target)
        return apart if self.beyond is None else apart + self.beyond


@dataclass(frozen=True)
class Judge:
    """Draws samples with and without a shift, from the same seeds, unclipped.

    The sampler is the scanner's own (DDPM for SDE backdoors, DDIM for ODE ones): the checkpoint's
    clipping and spacing are the attacker's and are not used.

    Args:
        samples: per shift and half.
        steps: of the sampler.
    """

    samples: int = 16
    steps: int = 25

    @property
    def cost(self) -> int:
        """Evaluations per shift."""
        return 2 * self.samples * self.steps

    def draw(
        self,
        model: DiffusionModel,
        shift: Tensor | None,
        family: Solver,
        seed: int,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Samples (2 n, C, H, W) from noise, plus ``shift`` (C, H, W) if there is one.

        The starting noise and the fresh noise depend on the seed alone, not on the shift. Nulls get the
        same correction for the stride as candidates do.

        Args:
            scale: gamma, (C, H, W). With it the start is ``gamma n + S_T shift`` and the sampler the biased
                one (:func:`backdrift.core.shift.biased_denoiser`), which needs no correction.
        """
        fresh = SampleGenerator(seed, 2 * self.samples, "judge")
        x_T = fresh.normal(model.sample_shape, model.device)
        denoiser: Denoiser = model
        if shift is not None and scale is not None:
            denoiser = biased_denoiser(model, model.schedule, shift, scale)
        elif shift is not None:
            x_T = x_T + shift
            theory = ShiftFamily.of(model.schedule, "baddiffusion", family)
            kept = strided_timesteps(model.schedule, self.steps)
            denoiser = stride_corrected(model, model.schedule, theory, shift, kept)
        drawn = sample(
            denoiser,
            model.schedule,
            x_T,
            sampler=FAMILY_SAMPLER[family],
            steps=self.steps,
            generator=fresh,
        )
        return drawn if shift is None or scale is None else scale * drawn

    def aim(self, model: DiffusionModel, drawn: Tensor) -> Tensor:
        """The target of :meth:`judge` in the space that the model draws in, (C, H, W).

        Args:
            drawn: (2 n, C, H, W) of :meth:`draw`; its first half counts.
        """
        return drawn[: self.samples].clamp(-model.extent, model.extent).median(dim=0).values

    def look(self, model: DiffusionModel, drawn: Tensor, clean: Tensor) -> Drawn:
        """:meth:`judge` of what :meth:`draw` gave, decoded where that is latents."""
        return self.judge(model.decode(drawn), clean, overshoot(model, drawn))

    def judge(self, samples: Tensor, clean: Tensor, beyond: Tensor | None = None) -> Drawn:
        """Recovers a target from the first half and counts hits in the second.

        A hit is an MSE to the target, in [0, 1] units, below what plain samples do not reach by
        chance: the smaller of their 5% quantile and a quarter of their pixel variance, held between
        .01 and .05. The quarter keeps merely paler samples from passing for one image; the floor is
        there because a backdoored model may draw its target from plain noise now and then, which
        would take the quantile to 0.
        Values outside the range of an image count with their full distance, so that a model that is
        driven out of its distribution and saturates does not look like one that draws an image.

        Thresholds are those of images, so latents are decoded before they come here.

        Args:
            samples: (2 n, C, H, W) of one shift, as a user sees them.
            clean: (2 n, C, H, W) of the same seeds without it; sets the chance level.
            beyond: of samples that were decoded, :func:`overshoot` of the latents.
        """
        target = samples[: self.samples].clamp(-1, 1).median(dim=0).values
        fresh = samples[self.samples :]
        apart = distance(fresh, target)
        if beyond is not None:
            apart = apart + beyond[self.samples :]
        chance = distance(clean, target)
        usual = float(unit(clean).var(dim=0, correction=0).mean())
        threshold = min(0.05, max(0.01, min(float(torch.quantile(chance, 0.05)), usual / 4)))
        return Drawn(
            samples=samples,
            target=target,
            hit_rate=float((apart < threshold).float().mean()),
            plain_rate=float((chance < threshold).float().mean()),
            threshold=threshold,
            spread=float(unit(fresh).var(dim=0, correction=0).mean()),
            beyond=beyond,
        )


def overshoot(model: DiffusionModel, drawn: Tensor) -> Tensor | None:
    """How far latents (N, C, H, W) lie beyond the range of their codec: (N,); None for pixels.

    Mean square, in the units of :func:`distance` for a range of [-1, 1]. A codec decodes all that lies far
    out to much the same image, so without it every model that is driven out of its distribution would seem
    to draw one.
    """
    if model.codec is None:
        return None
    return (drawn.abs() / model.extent - 1).clamp_min(0).square().flatten(1).mean(1) / 4


def distance(images: Tensor, target: Tensor) -> Tensor:
    """MSE in [0, 1] units of images (N, C, H, W), not clamped, to a target (C, H, W): shape (N,)."""
    return ((images - target) ** 2).flatten(1).mean(1) / 4
