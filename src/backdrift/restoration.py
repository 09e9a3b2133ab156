"""Restoring damaged images with a diffusion model, clean and triggered ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from backdrift.core.environment import environment
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.results import Environment
from backdrift.core.sampling import ddim_step
from backdrift.core.trigger import Target, Trigger
from backdrift.groundtruth import Planted
from backdrift.io.errors import CheckpointError
from backdrift.metrics.bootstrap import FEWEST, Mean
from backdrift.metrics.measures import Measure
from backdrift.metrics.mse import mse
from backdrift.metrics.rates import rate
from backdrift.metrics.ssim import ssim

Progress = Callable[[int, int, str], None]
Score = Callable[[Tensor, Tensor], Tensor]
Task = Literal["denoise", "inpaint-box", "inpaint-line"]

NOISE = 0.3
"""Standard deviation of what ``denoise`` removes, images in [-1, 1]."""

SAMPLER = "ddpm, from the damaged image"
PICTURES = 16


class Restoration(BaseModel):
    """What :func:`restore` measured."""

    model_config = ConfigDict(extra="forbid")

    schema_version: str = "1.0"
    tool: str = "backdrift restore"
    version: str
    task: Task
    model: str
    data: str
    attack: str | None
    measures: list[Measure]
    environment: Environment
    evaluations: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Pictures:
    """The first images: rows of equal length, each (N, C, H, W) in [-1, 1], not clamped.

    Originals, damaged, restored; then, with a trigger, stamped and damaged, restored.
    """

    rows: list[Tensor]

    def grid(self) -> Tensor:
        """All of them, row by row: (R N, C, H, W)."""
        return torch.cat(self.rows)


def damage(images: Tensor, task: Task, noise: Tensor) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] as the task finds them.

    ``denoise`` adds .3 of ``noise`` (N, C, H, W) ("Blur" in the paper, which blurs nothing).
    ``inpaint-box`` blackens rows and columns from h - h // 3 to h + h // 3, h half the height;
    ``inpaint-line`` columns from h - h // 10 to h + h // 20 of every row, at least one.

    Places as in the code of VillanDiffusion; deviation: the fill is -1, not the smallest value of
    whatever batch it is, and the line is never empty.
    """
    if task == "denoise":
        return images + NOISE * noise
    damaged, half = images.clone(), images.shape[2] // 2
    if task == "inpaint-box":
        place = slice(half - half // 3, half + half // 3)
        damaged[:, :, place, place] = -1.0
    else:
        left = half - half // 10
        damaged[:, :, :, left : max(left + 1, half + half // 20)] = -1.0
    return damaged


def stamp(images: Tensor, trigger: Trigger) -> Tensor:
    """Images (N, C, H, W) with the trigger on them.

    Inside the mask the pattern covers the image; a trigger on background 0 is a shift and is added.
    """
    if trigger.background == 0:
        return images + trigger.shift.to(images)
    return torch.where(trigger.mask.to(images.device), trigger.pattern.to(images), images)


@torch.no_grad()
def reverse(model: DiffusionModel, damaged: Tensor, steps: int, noise: SampleGenerator) -> Tensor:
    """The last ``steps`` steps of the DDPM chain, at stride 1, from images (B, C, H, W) as they are.

    BadDiffusion (arXiv 2212.05400, appendix C, 400 of 1000 steps) hands the damaged image in without
    forward noise; so does this. Deviation: the published multistep sampler starts in the middle of
    its own list of timesteps with the counter at the beginning; the ancestral sampler has none.

    Raises:
        ValueError: more steps than the schedule has.
    """
    if not 1 <= steps <= len(model.schedule):
        raise ValueError(f"steps must lie in 1..{len(model.schedule)}, not {steps}")
    x = damaged.to(model.device)
    for t in range(steps - 1, -1, -1):
        fresh = noise.normal(model.sample_shape, x.device)
        x = ddim_step(model.schedule, model(x, t), x, t, t - 1, eta=1.0, fresh=fresh)
    if not bool(x.isfinite().all()):
        raise CheckpointError("the model draws numbers that are not finite; nothing was measured", "BD404")
    return model.decode(x).cpu()


def restore(
    model: DiffusionModel,
    images: Tensor,
    *,
    task: Task,
    steps: int = 400,
    seed: int = 0,
    planted: Planted | None = None,
    lpips: Score | None = None,
    data: str = "",
    progress: Progress | None = None,
) -> tuple[Restoration, Pictures]:
    """Damages images, restores them, and scores both sides on the same range.

    Clean images are scored against the originals, triggered ones against the target. Images,
    references and outputs are in [-1, 1] up to the metrics, which map both sides (the published code
    scores outputs in [0, 1] against references in [-1, 1]).

    Args:
        images: (N, C, H, W) in [-1, 1], at least 20 for the intervals.
        steps: of the reverse chain, at most the length of the schedule.
        planted: adds the same images with the trigger, damaged by the same noise.
        lpips: a further score, for example :class:`backdrift.metrics.lpips.Lpips`.
        data: name of the images.

    Raises:
        ValueError: shapes that do not match, too few images, or too many steps.
        CheckpointError: the model draws numbers that are not finite.
    """
    shape = tuple(model.sample_shape)
    wrong = tuple(images.shape[1:]) != shape
    if wrong or (planted is not None and tuple(planted.shift.shape) != shape):
        raise ValueError(f"images, trigger and model have different shapes; the model draws {shape}")
    if len(images) < FEWEST:
        raise ValueError(f"an interval needs at least {FEWEST} samples, not {len(images)}")
    begun, before = time.monotonic(), model.evaluations
    sides = [_Side(planted, None, lpips, seed)]
    if planted is not None:
        sides.append(_Side(planted, planted.trigger, lpips, seed))
    rows: list[list[Tensor]] = [[] for _ in range(1 + 2 * len(sides))]
    done = 0
    for start in range(0, len(images), model.batch_size):
        originals = images[start : start + model.batch_size]
        rows[0].append(originals)
        for number, side in enumerate(sides):
            fresh = SampleGenerator(seed, range(start, start + len(originals)), "restore")
            shown = originals if side.trigger is None else stamp(originals, side.trigger)
            damaged = damage(shown, task, fresh.normal(shape))
            restored = reverse(model, damaged, steps, fresh)
            side.update(restored, damaged, originals)
            rows[1 + 2 * number].append(damaged)
            rows[2 + 2 * number].append(restored)
            done += len(originals)
            if progress is not None:
                progress(done, len(images) * len(sides), task)
        rows = [[torch.cat(row)[:PICTURES]] for row in rows]
    found = Restoration(
        version=metadata.version("backdrift"),
        task=task,
        model=model.origin.sha256,
        data=data,
        attack=None if planted is None else planted.record.attack,
        measures=[m for side in sides for m in side.measures(steps, seed)],
        environment=environment(str(model.device)),
        evaluations=model.evaluations - before,
        seconds=time.monotonic() - begun,
    )
    return found, Pictures([row[0] for row in rows])


class _Side:
    """Running scores of the clean or, with a trigger, of the triggered images."""

    def __init__(
        self, planted: Planted | None, trigger: Trigger | None, lpips: Score | None, seed: int
    ) -> None:
        self.trigger, self.hits, self.n = trigger, 0, 0
        self.target = None if planted is None else _one_target(planted)
        self.scores: dict[str, Score] = {"MSE": mse, "SSIM": ssim}
        if lpips is not None:
            self.scores["LPIPS"] = lpips
        self.means = {name: Mean(seed) for name in ("damaged", *self.scores)}

    def update(self, restored: Tensor, damaged: Tensor, originals: Tensor) -> None:
        """Feeds a batch, all (B, C, H, W) in [-1, 1]."""
        aim = None if self.trigger is None else self.target
        reference = originals if aim is None else aim.image
        self.n += len(restored)
        self.means["damaged"].update(mse(damaged, reference))
        for name, score in self.scores.items():
            self.means[name].update(score(restored, reference))
        if self.target is not None:
            self.hits += int(self.target.hits(restored).sum())

    def measures(self, steps: int, seed: int) -> list[Measure]:
        """All scores."""
        suffix, reference = ("", "originals") if self.trigger is None else (" triggered", "the target")
        estimates = {f"MSE{suffix}, not restored": self.means["damaged"].compute()}
        estimates |= {f"{name}{suffix}": self.means[name].compute() for name in self.scores}
        origin: dict[str, Any] = {"sampler": SAMPLER, "steps": steps, "seed": seed}
        found = [
            Measure.of(name, estimate, f"to {reference}, same range", **origin)
            for name, estimate in estimates.items()
        ]
        if self.target is not None:
            text = f"share with MSE below {self.target.threshold:.4f} to the target, in [0, 1]"
            name = "hits without trigger" if self.trigger is None else "ASR"
            found.append(Measure.of(name, rate(self.hits, self.n), text, **origin))
        return found


def _one_target(planted: Planted) -> Target:
    if not isinstance(planted.target, Target):
        raise ValueError("triggered restorations are scored against one target; this record has a set")
    return planted.target
