"""A model and its ground truth: attack success, specificity and utility."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from backdrift.core.environment import environment
from backdrift.core.model import DiffusionModel
from backdrift.core.results import Environment
from backdrift.core.trigger import Target, TargetSet
from backdrift.groundtruth import Planted
from backdrift.metrics.bootstrap import Mean
from backdrift.metrics.draws import Plan
from backdrift.metrics.features import Extractor
from backdrift.metrics.measures import Measure
from backdrift.metrics.mse import mse
from backdrift.metrics.rates import rate
from backdrift.metrics.ssim import ssim
from backdrift.metrics.utility import CleanTwin, Utility

__all__ = ["DEFAULT_SAMPLERS", "CleanTwin", "Evaluation", "Plan", "evaluate"]

Progress = Callable[[int, int, str], None]

DEFAULT_SAMPLERS = {"sde": "ddpm", "ode": "ddim", None: "ddpm"}
"""By the family that a backdoor was derived for."""


class Evaluation(BaseModel):
    """What :func:`evaluate` measured.

    Args:
        model: SHA-256 of the weights; ``clean_twin`` likewise.
        reference: the images behind FD and KD, and how many.
        hit: what counts as a hit.
        evaluations: forward passes of one sample, those of the clean twin among them.
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
    hit: str
    measures: list[Measure]
    environment: Environment
    evaluations: int
    seconds: float


@torch.no_grad()
def evaluate(
    model: DiffusionModel,
    planted: Planted,
    images: Tensor | None,
    plan: Plan,
    *,
    reference: str = "",
    clean_twin: CleanTwin | None = None,
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
        clean_twin: of the same plan; adds its FD and the ratio of both.
        extractor: for FD and KD; :class:`RandomConv` by default.
        replicates: of the bootstrap of FD.

    Raises:
        ValueError: shapes or a plan of the twin that do not match, steps that the sampler does not
            have, or a set of targets without ``images``.
        CheckpointError: a model draws numbers that are not finite.
    """
    _check(model, planted, images, clean_twin)
    begun, before = time.monotonic(), model.evaluations
    target = planted.target
    utility = None
    if images is not None:
        utility = Utility(images, extractor, seed=plan.seed, replicates=replicates, batch=model.batch_size)
        target = target.beside(images) if isinstance(target, TargetSet) else target
    count = _Counter(progress, plan.samples + plan.count(triggered=True))
    found = [
        _specificity(model, planted, target, plan, None, count),
        _specificity(model, None, target, plan, utility, count),
    ]
    measures = [row for pair in zip(*found, strict=True) for row in pair]
    if utility is not None:
        measures += utility.measures(plan)
        measures += [] if clean_twin is None else clean_twin.beside(utility, plan)
    rows = "" if images is None else f"{reference} ({len(images)} images)"
    spent = model.evaluations - before
    return Evaluation(
        version=metadata.version("backdrift"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model.origin.sha256,
        clean_twin=None if clean_twin is None else clean_twin.model,
        attack=planted.record.attack,
        reference=rows,
        hit=_rule(target),
        measures=measures,
        environment=environment(str(model.device)),
        evaluations=spent + (0 if clean_twin is None else clean_twin.evaluations),
        seconds=time.monotonic() - begun,
    )


class _Counter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int, text: str) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total, text)


def _rule(target: Target | TargetSet) -> str:
    if isinstance(target, Target):
        return f"MSE below {target.threshold:.4f} to the target, images in [0, 1]"
    return f"the nearest image, of {len(target.images)} targets and the clean training set, is a target"


def _specificity(
    model: DiffusionModel,
    planted: Planted | None,
    target: Target | TargetSet,
    plan: Plan,
    utility: Utility | None,
    count: _Counter,
) -> list[Measure]:
    injection = None if planted is None else planted.injection
    text, suffix = ("with trigger", "") if planted else ("without trigger", " without trigger")
    hits, done, scores = 0, 0, {"MSE": mse}
    if min(model.sample_shape[1:]) >= 6:
        scores["SSIM"] = ssim
    means = {name: Mean(plan.seed) for name in scores} if isinstance(target, Target) else {}
    for samples in plan.draw(model, injection):
        hits += int(target.hits(samples).sum())
        if isinstance(target, Target):
            for name, mean in means.items():
                mean.update(scores[name](samples, target.image))
        if utility is not None:
            utility.update(samples)
        done += len(samples)
        count.add(len(samples), text)
    name = ("ASR" if planted else "hits") + suffix
    rows = [plan.measure(name, rate(hits, done), f"share of hits, in [0, 1]; {_rule(target)}")]
    about = "to the target, images in [0, 1], data range 1"
    return rows + [plan.measure(name + suffix, mean.compute(), about) for name, mean in means.items()]


def _check(model: DiffusionModel, planted: Planted, images: Tensor | None, twin: CleanTwin | None) -> None:
    target = planted.target
    image = target.image if isinstance(target, Target) else target.images[0]
    shapes = {
        "the trigger of the record": tuple(planted.shift.shape),
        "the target of the record": tuple(image.shape),
        "the clean twin": tuple(twin.shape if twin is not None else model.sample_shape),
        "the data set": tuple(images.shape[1:] if images is not None else model.sample_shape),
    }
    for name, shape in shapes.items():
        if shape != tuple(model.sample_shape):
            raise ValueError(f"{name} has shape {shape}; the model draws {tuple(model.sample_shape)}")
