"""Elijah's removal: training on clean images while the trigger's shift is taken back at the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate
from backdrift.repair._base import (
    Log,
    Progress,
    Repaired,
    check_data,
    check_evidence,
    check_least,
    own_images,
    working_copy,
)
from backdrift.training import TrainingConfig, train


@dataclass(frozen=True)
class Elijah:
    """Takes the shift by a found trigger back at the first timestep, and trains on clean images beside.

    It minimises, with f_0 the frozen given model and n the noise of the batch, ::

        || eps - f(x_t, t) ||^2 + || f(n + tau, T-1) - f_0(n, T-1) ||^2 + || f(n, T-1) - f_0(n, T-1) ||^2

    Elijah, AAAI 2024, arXiv 2312.00050, section on removal, defaults of its code for BadDiffusion on
    CIFAR-10: Adam, rate 2e-4 reached at the 500th of 517 steps, batch 128, 10% of the clean data or
    generated images. Deviations: the three terms are one mean over their rows, a third of the sum, which
    matters for the clipping of the gradient alone; the last 17 steps fall instead of staying; with a
    scale of the noise (TrojDiff) the shifted input is ``gamma n + tau``, where the published code takes
    the true mu and gamma.

    Cost: ``steps * batch_size * 10``, and ``generated * sampling_steps`` where no data are given.

    Args:
        steps: of Adam.
        batch_size: clean rows in a step; twice as many rows are added to them.
        learning_rate: its peak.
        warm_up: share of the steps.
        generated: images that the given model draws where no data are given.
        sampling_steps: of DDPM for them.
    """

    changes_weights: ClassVar[bool] = True

    steps: int = 517
    batch_size: int = 128
    learning_rate: float = 2e-4
    warm_up: float = 500 / 517
    generated: int = 512
    sampling_steps: int = 50

    def __post_init__(self) -> None:
        check_least(self, steps=1, batch_size=1, generated=1)

    def most_evaluations(self) -> int:
        """What it costs at most, about; see :class:`backdrift.repair._base.Repair`."""
        return self.generated * self.sampling_steps + 12 * self.steps * self.batch_size

    def __call__(
        self,
        model: DiffusionModel,
        evidence: Sequence[Candidate] = (),
        *,
        data: Tensor | None = None,
        seed: int,
        progress: Progress | None = None,
    ) -> Repaired:
        """See :class:`backdrift.repair._base.Repair`; takes the first of the evidence."""
        check_evidence(evidence, model.sample_shape)
        check_data(data, model.sample_shape)
        student, teacher = working_copy(model), working_copy(model)
        log = Log(self, seed, student, teacher)
        with teacher.frozen():
            images = (
                own_images(teacher, self.generated, self.sampling_steps, seed) if data is None else data
            )
            lessons = _Lessons(teacher, images, evidence[0])
            config = TrainingConfig(
                steps=self.steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                warm_up=self.warm_up,
                seed=seed,
                checkpoint_every=0,
            )
            cpu = student.device.type == "cpu"
            course = train(student, len(images), lessons, config, cpu=cpu, progress=progress)
        log.spend(9 * self.steps * self.batch_size)
        loss = {"loss at the end": course["loss"][-1]}
        used = 0 if data is None else len(data)
        return Repaired(student, None, log.record(f"{self.steps} steps were done", loss, used))


class _Lessons:
    """The rows of the three terms, one after the other."""

    def __init__(self, teacher: DiffusionModel, images: Tensor, found: Candidate) -> None:
        self.teacher, self.images = teacher, images.cpu()
        self.shift = found.shift.to(teacher.device)
        self.scale = None if found.scale is None else found.scale.to(teacher.device)

    @torch.no_grad()
    def __call__(self, index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        schedule = self.teacher.schedule
        clean = schedule.add_noise(self.images[index.cpu()].to(noise), noise, t)
        last = torch.full_like(t, len(schedule) - 1)
        plain = self.teacher(noise, last)
        scaled = noise if self.scale is None else self.scale * noise
        x_t = torch.cat([clean, scaled + self.shift, noise])
        return x_t, torch.cat([noise, plain, plain]), torch.cat([t, last, last])
