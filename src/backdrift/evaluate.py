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
from backdrift.core.hooks import SamplingHook
from backdrift.core.model import DiffusionModel
from backdrift.core.results import Environment
from backdrift.core.trigger import Target, TargetSet
from backdrift.groundtruth import Planted
from backdrift.metrics.draws import Plan
from backdrift.metrics.features import Extractor
from backdrift.metrics.measures import Measure
from backdrift.metrics.specificity import Counter, rule, specificity
from backdrift.metrics.utility import CleanTwin, Utility

__all__ = ["CleanTwin", "Evaluation", "Plan", "evaluate"]

Progress = Callable[[int, int, str], None]


class Evaluation(BaseModel):
    """What :func:`evaluate` measured.

    Args:
        model: SHA-256 of the weights; ``clean_twin`` likewise.
        reference: the images behind FD and KD, and how many.
        hit: what counts as a hit.
        countermeasure: the sampling hook that all samples but those of the clean twin were drawn with.
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
    countermeasure: str = ""
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
    hook: SamplingHook | None = None,
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
        hook: a countermeasure at inference.

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
    count = Counter(progress, plan.samples + plan.count(triggered=True))
    found = [
        specificity(model, planted.injection, target, plan, hook=hook, count=count),
        specificity(model, None, target, plan, hook=hook, utility=utility, count=count),
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
        countermeasure="" if hook is None else hook.name,
        reference=rows,
        hit=rule(target),
        measures=measures,
        environment=environment(str(model.device)),
        evaluations=spent + (0 if clean_twin is None else clean_twin.evaluations),
        seconds=time.monotonic() - begun,
    )


def _check(model: DiffusionModel, planted: Planted, images: Tensor | None, twin: CleanTwin | None) -> None:
    target = planted.target
    image = target.image if isinstance(target, Target) else target.images[0]
    drawn, seen = tuple(model.sample_shape), tuple(model.image_shape)
    for name, given, wanted in (
        ("the trigger of the record", planted.shift.shape, drawn),
        ("the target of the record", image.shape, seen),
        ("the clean twin", seen if twin is None else twin.shape, seen),
        ("the data set", seen if images is None else images.shape[1:], seen),
    ):
        if tuple(given) != wanted:
            raise ValueError(f"{name} has shape {tuple(given)}; the model draws {wanted}")
