"""Utility: how far a model's clean samples are from the clean training set, and from a clean twin's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.metrics.draws import Plan
from backdrift.metrics.fd import FrechetDistance, ratio
from backdrift.metrics.features import Extractor, RandomConv
from backdrift.metrics.kd import KernelDistance
from backdrift.metrics.measures import Measure


class Utility:
    """FD and KD of clean samples to a reference, which is seen in a fixed random order.

    Args:
        images: the reference (N, C, H, W) in [-1, 1].
        extractor: :class:`RandomConv` by default.
        seed: of the order and of the bootstraps.
        replicates: of the bootstrap of FD.
        batch: of the reference; paired bootstraps need the same one.
    """

    def __init__(
        self,
        images: Tensor,
        extractor: Extractor | None = None,
        *,
        seed: int = 0,
        replicates: int = 200,
        batch: int = 256,
    ) -> None:
        self.images, self.extractor = images, extractor or RandomConv(images.shape[1])
        self.order = torch.randperm(len(images), generator=generator(seed, "reference"))
        self.fd = FrechetDistance(self.extractor, seed=seed, replicates=replicates)
        self.kd = KernelDistance(self.extractor, seed=seed)
        self._seen = 0
        for start in range(0, len(images), batch):
            self.fd.update(images[self.order[start : start + batch]], real=True)

    def update(self, samples: Tensor) -> None:
        """Feeds clean samples (B, C, H, W) in [-1, 1]."""
        self.fd.update(samples, real=False)
        rows = self.order[self._seen : self._seen + len(samples)]
        self._seen += len(samples)
        if len(rows):
            self.kd.update(self.images[rows], real=True)
            self.kd.update(samples[: len(rows)], real=False)

    def measures(self, plan: Plan) -> list[Measure]:
        """FD, and KD if two blocks of it were seen."""
        text = "clean samples to the reference, from 0"
        found = [plan.measure(self.fd.name, self.fd.compute(), text)]
        if self.kd.ready:
            found.append(plan.measure(self.kd.name, self.kd.compute(), f"{text}, unbiased"))
        return found


@dataclass(frozen=True, eq=False)
class CleanTwin:
    """What a clean model of the same data draws: measured once, set beside many models.

    Args:
        model: SHA-256 of its weights.
        evaluations: forward passes of one sample that it cost.
    """

    model: str
    shape: tuple[int, ...]
    plan: Plan
    fd: FrechetDistance
    evaluations: int

    @classmethod
    @torch.no_grad()
    def measure(
        cls,
        model: DiffusionModel,
        images: Tensor,
        plan: Plan,
        extractor: Extractor | None = None,
        *,
        replicates: int = 200,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> CleanTwin:
        """Draws ``plan.samples`` of them; see :class:`Utility` for the rest.

        Raises:
            ValueError: the data set has another shape.
            CheckpointError: the model draws numbers that are not finite.
        """
        shape = tuple(model.image_shape)
        if tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"the data set has shape {tuple(images.shape[1:])}; the clean twin draws {shape}"
            )
        before, done = model.evaluations, 0
        seen = Utility(images, extractor, seed=plan.seed, replicates=replicates, batch=model.batch_size)
        for samples in plan.draw(model, None):
            seen.fd.update(samples, real=False)
            done += len(samples)
            if progress is not None:
                progress(done, plan.samples, "clean twin")
        return cls(model.origin.sha256, shape, plan, seen.fd, model.evaluations - before)

    def beside(self, other: Utility, plan: Plan) -> list[Measure]:
        """Its FD, and the ratio of the other's to it.

        Raises:
            ValueError: it was measured by another plan, so that the two are not comparable.
        """
        if (plan.samples, plan.sampler, plan.steps, plan.seed) != (
            self.plan.samples,
            self.plan.sampler,
            self.plan.steps,
            self.plan.seed,
        ):
            raise ValueError("the clean twin was measured with other samples, sampler, steps or seed")
        name = self.fd.name
        if name != other.fd.name:
            raise ValueError(f"the clean twin was measured by {name}, the model by {other.fd.name}")
        return [
            plan.measure(f"{name} of the clean twin", self.fd.compute(), "its samples to the reference"),
            plan.measure(f"{name} ratio", ratio(other.fd, self.fd), "model / clean twin; 1 is no loss"),
        ]
