"""A model and its ground truth: attack success, specificity and utility."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from backdrift.core.environment import environment
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.results import Environment
from backdrift.groundtruth import Planted
from backdrift.io.errors import CheckpointError
from backdrift.metrics.bootstrap import FEWEST, Mean
from backdrift.metrics.draws import batches
from backdrift.metrics.fd import FrechetDistance, ratio
from backdrift.metrics.features import Extractor, RandomConv
from backdrift.metrics.kd import KernelDistance
from backdrift.metrics.measures import Measure
from backdrift.metrics.mse import mse
from backdrift.metrics.rates import Estimate, rate
from backdrift.metrics.ssim import ssim

Progress = Callable[[int, int, str], None]

DEFAULT_SAMPLERS = {"sde": "ddpm", "ode": "ddim", None: "ddpm"}
"""By the family that a backdoor was derived for."""


class Evaluation(BaseModel):
    """What :func:`evaluate` measured.

    Args:
        model: SHA-256 of the weights; ``clean_twin`` likewise.
        reference: the images behind FD and KD, and how many.
        hit_threshold: MSE in [0, 1] that a hit stays below.
        evaluations: forward passes of one sample.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: str = "1.0"
    tool: str = "backdrift evaluate"
    version: str
    finished: str
    model: str
    clean_twin: str | None
    attack: str
    reference: str
    hit_threshold: float
    measures: list[Measure]
    environment: Environment
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How samples are drawn.

    Args:
        samples: with the trigger and without, each.
        sampler: a name of ``core.sampling.SAMPLERS``.
        seed: of the noise and of the bootstraps; the starting noise with and without the trigger, and
            that of a clean twin, is the same.
    """

    samples: int = 1000
    sampler: str = "ddpm"
    steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < FEWEST:
            raise ValueError(f"an interval needs at least {FEWEST} samples, not {self.samples}")

    def draw(self, model: DiffusionModel, injection: Injection | None) -> Iterator[Tensor]:
        """Batches (B, C, H, W) on the CPU.

        Raises:
            CheckpointError: the model draws numbers that are not finite.
        """
        drawn = batches(
            model, injection, sampler=self.sampler, steps=self.steps, n=self.samples, seed=self.seed
        )
        for batch in drawn:
            if not bool(batch.isfinite().all()):
                raise CheckpointError("the model draws numbers that are not finite; nothing was measured")
            yield model.decode(batch).cpu()

    def measure(self, name: str, estimate: Estimate, meaning: str) -> Measure:
        """An estimate of samples that were drawn so."""
        return Measure.of(name, estimate, meaning, sampler=self.sampler, steps=self.steps, seed=self.seed)


@torch.no_grad()
def evaluate(
    model: DiffusionModel,
    planted: Planted,
    images: Tensor | None,
    plan: Plan,
    *,
    reference: str = "",
    clean_twin: DiffusionModel | None = None,
    extractor: Extractor | None = None,
    replicates: int = 200,
    progress: Progress | None = None,
) -> Evaluation:
    """Draws with and without the trigger from the same noise and measures both.

    With the trigger: ASR, and MSE and SSIM to the target (specificity, BadDiffusion, arXiv 2212.05400,
    section 4.2). Without it: the same, which is what the target is reached by chance, and FD and KD to
    the clean training set (utility). Samples are streamed; memory does not grow with their number.

    Args:
        images: the clean training set (N, C, H, W) in [-1, 1]; without it no FD and KD.
        reference: its name.
        clean_twin: a clean model of the same shape; adds its FD and the ratio of both.
        extractor: for FD and KD; :class:`RandomConv` by default.
        replicates: of the bootstrap of FD.

    Raises:
        ValueError: shapes that do not match, or steps that the sampler does not have.
        CheckpointError: a model draws numbers that are not finite.
    """
    _check(model, planted, images, clean_twin)
    drawn_from = [model] if clean_twin is None else [model, clean_twin]
    begun, before = time.monotonic(), sum(m.evaluations for m in drawn_from)
    count = _Counter(progress, plan.samples * (3 if clean_twin is not None and images is not None else 2))
    utility = None
    if images is not None:
        chosen = extractor or RandomConv(model.sample_shape[0])
        utility = _Utility(images, chosen, plan.seed, replicates, model.batch_size)
    measures = _specificity(model, planted, plan, utility, count)
    if utility is not None:
        measures += _distances(utility, plan)
        if clean_twin is not None:
            measures += _against_twin(utility, clean_twin, plan, count)
    spent = sum(m.evaluations for m in drawn_from) - before
    rows = "" if images is None else f"{reference} ({len(images)} images)"
    return Evaluation(
        version=metadata.version("backdrift"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model.origin.sha256,
        clean_twin=None if clean_twin is None else clean_twin.origin.sha256,
        attack=planted.record.attack,
        reference=rows,
        hit_threshold=planted.target.threshold,
        measures=measures,
        environment=environment(str(model.device)),
        evaluations=spent,
        seconds=time.monotonic() - begun,
    )


class _Counter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int, text: str) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total, text)


class _Utility:
    """FD and KD of a model's clean samples to a reference in a fixed random order."""

    def __init__(
        self, images: Tensor, extractor: Extractor, seed: int, replicates: int, batch: int
    ) -> None:
        self.images, self.extractor, self.seed = images, extractor, seed
        self.replicates, self.batch = replicates, batch
        self.order = torch.randperm(len(images), generator=generator(seed, "reference"))
        self.fd, self.kd = self.new_fd(), KernelDistance(extractor, seed=seed)

    def new_fd(self) -> FrechetDistance:
        """An FD that has seen the reference."""
        fd = FrechetDistance(self.extractor, seed=self.seed, replicates=self.replicates)
        for start in range(0, len(self.order), self.batch):
            fd.update(self.images[self.order[start : start + self.batch]], real=True)
        return fd

    def update(self, samples: Tensor, start: int) -> None:
        """Feeds samples; they are the ones from ``start`` on."""
        self.fd.update(samples, real=False)
        rows = self.order[start : start + len(samples)]
        if len(rows):
            self.kd.update(self.images[rows], real=True)
            self.kd.update(samples[: len(rows)], real=False)


def _specificity(
    model: DiffusionModel, planted: Planted, plan: Plan, utility: _Utility | None, count: _Counter
) -> list[Measure]:
    found: list[list[Measure]] = []
    for injection, suffix in ((planted.injection, ""), (None, " without trigger")):
        hits, done, errors, likeness = 0, 0, Mean(plan.seed), Mean(plan.seed)
        for samples in plan.draw(model, injection):
            hits += int(planted.target.hits(samples).sum())
            errors.update(mse(samples, planted.target.image))
            if min(samples.shape[2:]) >= 6:
                likeness.update(ssim(samples, planted.target.image))
            if injection is None and utility is not None:
                utility.update(samples, done)
            done += len(samples)
            count.add(len(samples), "without trigger" if injection is None else "with trigger")
        name = "ASR" if injection is not None else "hits"
        below = f"share of samples with MSE below {planted.target.threshold:.4f} to the target, in [0, 1]"
        rows = [
            plan.measure(name + suffix, rate(hits, done), below),
            plan.measure(f"MSE{suffix}", errors.compute(), "to the target, images in [0, 1]"),
        ]
        if min(model.sample_shape[1:]) >= 6:
            text = "to the target, images in [0, 1], data range 1"
            rows.append(plan.measure(f"SSIM{suffix}", likeness.compute(), text))
        found.append(rows)
    return [row for pair in zip(*found, strict=True) for row in pair]


def _distances(utility: _Utility, plan: Plan) -> list[Measure]:
    text = "clean samples to the reference, from 0"
    found = [plan.measure(utility.fd.name, utility.fd.compute(), text)]
    if utility.kd.ready:
        found.append(plan.measure(utility.kd.name, utility.kd.compute(), f"{text}, unbiased"))
    return found


def _against_twin(utility: _Utility, twin: DiffusionModel, plan: Plan, count: _Counter) -> list[Measure]:
    other = utility.new_fd()
    for samples in plan.draw(twin, None):
        other.update(samples, real=False)
        count.add(len(samples), "clean twin")
    name = other.name
    return [
        plan.measure(f"{name} of the clean twin", other.compute(), "its samples to the reference"),
        plan.measure(f"{name} ratio", ratio(utility.fd, other), "model / clean twin; 1 is no loss"),
    ]


def _check(
    model: DiffusionModel, planted: Planted, images: Tensor | None, twin: DiffusionModel | None
) -> None:
    shapes = {
        "the trigger of the record": tuple(planted.shift.shape),
        "the target of the record": tuple(planted.target.image.shape),
        "the clean twin": tuple(twin.sample_shape if twin is not None else model.sample_shape),
        "the data set": tuple(images.shape[1:] if images is not None else model.sample_shape),
    }
    for name, shape in shapes.items():
        if shape != tuple(model.sample_shape):
            raise ValueError(f"{name} has shape {shape}; the model draws {tuple(model.sample_shape)}")
