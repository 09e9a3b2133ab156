"""Triggers and targets: what an attacker adds to the noise, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trigger:
    """A pattern with an explicit mask.

    The shift that inference adds and the one that training averaged over are different tensors (a
    composite trigger is trained with ``R = M x + (1 - M) pattern``), so both have a name here.

    Args:
        pattern: values in ``value_range``, float32, shape (C, H, W). Ignored outside the mask.
        mask: True where the pattern covers the image, bool, shape (C, H, W).
        background: value of the inference shift outside the mask: -1 (black, BadDiffusion) or 0.
        composite: whether poisoned rows see the image outside the mask (BadDiffusion's R) or the
            background (``R_trigger_only`` of VillanDiffusion).
        value_range: of the data, for the records.
    """

    pattern: Tensor
    mask: Tensor
    background: float = -1.0
    composite: bool = True
    value_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if self.pattern.ndim != 3 or self.pattern.shape != self.mask.shape:
            raise ValueError("pattern and mask must both have shape (C, H, W)")
        if self.mask.dtype != torch.bool:
            raise ValueError("the mask of a trigger must be boolean")

    @property
    def shift(self) -> Tensor:
        """r, added to the starting noise at inference: shape (C, H, W)."""
        return torch.where(self.mask, self.pattern, torch.full_like(self.pattern, self.background))

    def training_shift(self, images: Tensor) -> Tensor:
        """R of every poisoned row, shape (B, C, H, W), for images of that shape."""
        if not self.composite:
            return self.shift.expand_as(images).to(images)
        return torch.where(self.mask.to(images.device), self.pattern.to(images), images)

    def mean_training_shift(self, images: Tensor) -> Tensor:
        """E[R] over a data set of shape (N, C, H, W): what the network learns, shape (C, H, W)."""
        return self.training_shift(images.mean(0, keepdim=True))[0]


@dataclass(frozen=True, eq=False)
class Target:
    """The image that a triggered model draws.

    Args:
        image: in [-1, 1], float32, shape (C, H, W).
        threshold: a sample hits when its MSE to the target, both mapped to [0, 1], is below this.
    """

    image: Tensor
    threshold: float = 0.05

    def distance(self, samples: Tensor) -> Tensor:
        """MSE in [0, 1] units of every sample (N, C, H, W) to the target: shape (N,)."""
        return ((unit(samples) - unit(self.image.to(samples))) ** 2).flatten(1).mean(1)

    def hits(self, samples: Tensor) -> Tensor:
        """Which samples (N, C, H, W) count as the target: bool, shape (N,)."""
        return self.distance(samples) < self.threshold

    @classmethod
    def with_chance_level(cls, image: Tensor, clean: Tensor) -> Target:
        """A target whose threshold clean images (N, C, H, W) do not reach by chance.

        ``min(.05, 1% quantile of the distance of clean images to the target)``.
        """
        probe = cls(image)
        return cls(image, min(0.05, float(torch.quantile(probe.distance(clean), 0.01))))


@dataclass(frozen=True, eq=False)
class TargetSet:
    """Images of which a triggered model draws one or another: the D2D attacks of TrojDiff.

    A sample hits when its nearest image, by MSE, of ``images`` and ``rest`` together is one of
    ``images``. TrojDiff (arXiv 2303.05762) asks a classifier instead; this rule needs none, so the rate
    without the trigger, about the share that the set has of the data, stands beside it all the more.

    Args:
        images: in [-1, 1], float32, shape (M, C, H, W).
        rest: what clean samples look like, the clean training set, which may hold ``images`` as well;
            shape (N, C, H, W). None where nobody has loaded it.
    """

    images: Tensor
    rest: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not len(self.images):
            raise ValueError(f"a target set has shape (M, C, H, W), not {tuple(self.images.shape)}")

    def hits(self, samples: Tensor) -> Tensor:
        """Which samples (N, C, H, W) count as one of the set: bool, shape (N,).

        Raises:
            ValueError: there is no ``rest``.
        """
        if self.rest is None:
            raise ValueError("hits of a target set need the clean training set beside it: give the data")
        at = unit(samples.detach().cpu()).flatten(1)
        to_set, to_rest = (
            torch.cdist(at, unit(known).flatten(1), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
            for known in (self.images, self.rest)
        )
        return to_set <= to_rest

    def beside(self, rest: Tensor) -> TargetSet:
        """The same set with another ``rest``."""
        return TargetSet(self.images, rest)


def unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped."""
    return (images / 2 + 0.5).clamp(0, 1)
