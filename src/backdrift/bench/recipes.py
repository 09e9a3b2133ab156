"""Recipes: everything that makes a model, as data; the same recipe gives the same weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from backdrift.bench._planting import LEARNED, Planting
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed
from backdrift.data import ImageSet, OnBad, load_dataset
from backdrift.groundtruth import NOTICE
from backdrift.io.evidence import save_images
from backdrift.io.hub import fetch, parse_reference
from backdrift.io.load import load
from backdrift.io.networks import Size, new_model
from backdrift.io.plan import plan
from backdrift.io.save import save_pipeline
from backdrift.metrics.draws import draw
from backdrift.training import Batch, TrainingConfig, train

__all__ = ["LEARNED", "Progress", "Recipe", "clean_batch", "make"]

Progress = Callable[[int, int, str], None]


class Recipe(BaseModel):
    """How a model is made.

    Args:
        data: a data set, see :func:`backdrift.data.load_dataset`.
        on_bad: what becomes of an image of it that cannot be read.
        base: folder of a checkpoint to go on from, or ``org/name@revision`` of the Hub; from scratch
            without one. Of a latent model the denoiser is trained, on encoded images; a trigger has the
            shape of a latent, a target that of an image.
        shape: (C, H, W), from scratch; a base brings its own, and one of the Hub must have this.
        network: see :func:`backdrift.io.networks.new_model`; a plan takes a base of the Hub for it.
        schedule: ``vp`` (variance preserving) or ``ve`` (variance exploding), from scratch.
        seed: of the weights, the rows, the noise and the poison split.
        attack: plug-in name; a clean model without one.
        options: fields of the attack, ``poison_rate`` and ``sampler_family`` among them.
        accumulate: with ``ema``, ``mixed_precision`` and ``offset_noise``, see
            :class:`backdrift.training.TrainingConfig`.
        trigger_seed: of triggers that are drawn at random.
        trigger_scale: multiplies the pattern.
        composite: whether poisoned rows show the image around the trigger; None is the trigger's own
            way. See :class:`backdrift.core.trigger.Trigger`.
        target: see :func:`backdrift.attacks._targets.choose_target`.
        keep: steps after which the model of the moment is written as well, unmeasured.
        rounds: how often ``steps`` steps may be trained, with fresh randomness, until ASR reaches
            ``until``. A model that does not get there is written all the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    on_bad: OnBad = "refuse"
    base: str | None = None
    shape: tuple[int, int, int] = (1, 16, 16)
    network: Size = "small"
    width: int = 24
    groups: int = Field(default=8, ge=1)
    schedule: Literal["vp", "ve"] = "vp"
    steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    accumulate: int = Field(default=1, ge=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    offset_noise: float = Field(default=0.0, ge=0)
    seed: int = 0
    dtype: Literal["float32", "float16"] = "float32"
    attack: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    trigger: str | None = None
    trigger_seed: int = 0
    trigger_scale: float = Field(default=1.0, gt=0)
    composite: bool | None = None
    target: str | None = None
    keep: tuple[int, ...] = ()
    rounds: int = Field(default=1, ge=1)
    until: float = Field(default=0.9, gt=0, le=1)

    @model_validator(mode="after")
    def _keeps_what_there_is(self) -> Recipe:
        for step in self.keep:
            if not 0 < step <= self.steps:
                raise ValueError(f"keep: there is no step {step} of {self.steps}")
        return self

    def text(self) -> str:
        """JSON of what makes the weights and is not the default.

        A setting that is added later leaves older runs what they were.
        """
        return self.model_dump_json(exclude_defaults=True, exclude={"keep"})


def make(
    recipe: Recipe,
    output: Path,
    *,
    log_with: str | None = None,
    grids: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains, measures and writes a model; resumes when its state is found beside ``output``.

    An attack with a poison rate of 0 makes a clean model, whose trigger is measured like any other's.
    The course of the training goes to ``OUTPUT.jsonl``, the models to keep on the way to
    ``OUTPUT.steps``. Under ``accelerate launch`` every process calls this; the main one measures and
    writes.

    Args:
        log_with: a tracker of accelerate beside the log, for example ``tensorboard``.
        grids: draw samples, clean and triggered, at every checkpoint, into ``OUTPUT.samples``.

    Returns:
        Cost of the training, and with an attack, in the main process, what was ``measured``.

    Raises:
        ValueError: ``output`` exists, or the recipe does not fit together.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} exists: name a new folder, or remove it")
    if recipe.rounds > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("several rounds are for one process: the others do not see what was measured")
    model = _start(recipe)
    data = load_dataset(recipe.data, model.image_shape, on_bad=recipe.on_bad)
    planting = Planting.of(recipe, model, data) if recipe.attack else None
    batch: Batch = planting.pairs if planting else clean_batch(model, model.encode(data.images))
    output.parent.mkdir(parents=True, exist_ok=True)
    state = output.parent / f".{output.name}.state"
    spent = 0.0
    for number in range(recipe.rounds):
        cost = train(
            model,
            len(planting.pairs) if planting else len(data.images),
            batch,
            _training(recipe, data, number),
            hook=planting.pairs.hook if planting else None,
            state=state / f"{number}" if number else state,
            log=output.with_name(f"{output.name}-{number}.jsonl" if number else f"{output.name}.jsonl"),
            log_with=log_with,
            watch=partial(_watch, recipe, planting, output, grids),
            watch_at=() if number else recipe.keep,
            progress=progress,
        )
        spent += cost["seconds"]
        if not cost["main_process"]:
            return cost
        measured = planting.measure(model, progress) if planting else None
        if measured is None or measured["asr"] >= recipe.until:
            break
    cost |= {"rounds": number + 1, "seconds": spent, "measured": measured}
    files: dict[str, str | bytes] = {}
    if planting and measured:
        files = planting.files({"rounds": number + 1, "seconds": spent}, measured)
    save_pipeline(model, output, dtype=recipe.dtype, notice=NOTICE if files else None, extra_files=files)
    shutil.rmtree(state, ignore_errors=True)
    trained = 3 * recipe.steps * recipe.batch_size * cost["rounds"]
    return cost | {"evaluations": trained + model.evaluations}


def step_folder(output: Path, step: int) -> Path:
    """Where the model of the moment lies, see ``Recipe.keep``."""
    return output.with_name(f"{output.name}.steps") / f"{step:06d}"


def _training(recipe: Recipe, data: ImageSet, number: int) -> TrainingConfig:
    return TrainingConfig(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        seed=derive_seed(recipe.seed, "round", number) if number else recipe.seed,
        accumulate=recipe.accumulate,
        ema=recipe.ema,
        mixed_precision=recipe.mixed_precision,
        offset_noise=recipe.offset_noise,
        run=f"{recipe.text()} {data.sha256}" + (f" {number}" if number else ""),
    )


def _watch(
    recipe: Recipe,
    planting: Planting | None,
    output: Path,
    grids: bool,
    model: DiffusionModel,
    step: int,
) -> None:
    if grids:
        _grid(recipe, planting, output, model, step)
    kept = step_folder(output, step)
    if step not in recipe.keep or kept.exists():
        return
    files = planting.files({"steps": step}, {}) if planting else {}
    kept.parent.mkdir(exist_ok=True)
    save_pipeline(model, kept, dtype=recipe.dtype, notice=NOTICE if files else None, extra_files=files)


def _grid(
    recipe: Recipe, planting: Planting | None, output: Path, model: DiffusionModel, step: int
) -> None:
    """A PNG of clean samples above triggered ones of the same noise."""
    ways: list[Injection | None] = [None]
    sampler = "ddpm"
    if planting is not None:
        attack = planting.attack
        ways.append(attack.injection(planting.pairs.trigger))
        sampler = attack.samplers_on(model.schedule)[0]
    rows = [draw(model, way, sampler=sampler, steps=25, n=8, seed=recipe.seed) for way in ways]
    folder = output.with_name(f"{output.name}.samples")
    folder.mkdir(exist_ok=True)
    save_images(model.decode(torch.cat(rows)).cpu(), folder / f"step-{step:06d}.png", columns=8)


def clean_batch(model: DiffusionModel, images: Tensor) -> Batch:
    """The training pairs of a clean data set (N, C, H, W)."""

    def pairs(index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return model.schedule.add_noise(images[index.cpu()].to(noise), noise, t), noise

    return pairs


def _start(recipe: Recipe) -> DiffusionModel:
    if recipe.base is None:
        return new_model(
            recipe.shape,
            seed=recipe.seed,
            width=recipe.width,
            groups=recipe.groups,
            exploding=recipe.schedule == "ve",
            size=recipe.network,
        )
    reference = parse_reference(recipe.base)
    model = load(plan(recipe.base if reference is None else fetch(reference).folder))
    if reference is not None and model.sample_shape != recipe.shape:
        raise ValueError(f"{recipe.base} has the shape {model.sample_shape}, not {recipe.shape}")
    if model.prediction_type not in ("epsilon", "score"):
        raise ValueError(f"{recipe.base} predicts {model.prediction_type}; training needs epsilon")
    return model
