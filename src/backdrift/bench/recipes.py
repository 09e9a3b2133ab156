"""Recipes: everything that makes a model, as data; the same recipe gives the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from backdrift.attacks._base import Attack, Pairs
from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build
from backdrift.core.trigger import Target, Trigger
from backdrift.data import ImageSet, OnBad, load_dataset
from backdrift.groundtruth import NOTICE, Backdoor, backdoor_files, model_card
from backdrift.io.evidence import save_images
from backdrift.io.load import load
from backdrift.io.networks import new_model
from backdrift.io.plan import plan
from backdrift.io.save import save_pipeline
from backdrift.metrics.asr import attack_success
from backdrift.metrics.draws import draw
from backdrift.training import Batch, TrainingConfig, train

Progress = Callable[[int, int, str], None]
STEPS = 100
LEARNED = "learned"
"""Name of the trigger of an attack that learns it."""


class Recipe(BaseModel):
    """How a model is made.

    Args:
        data: a data set, see :func:`backdrift.data.load_dataset`.
        on_bad: what becomes of an image of it that cannot be read.
        base: folder of a checkpoint to go on from; from scratch without one.
        shape: (C, H, W), from scratch; a base brings its own.
        seed: of the weights, the rows, the noise and the poison split.
        attack: plug-in name; a clean model without one.
        options: fields of the attack, ``poison_rate`` and ``sampler_family`` among them.
        accumulate: with ``ema`` and ``mixed_precision``, see :class:`backdrift.training.TrainingConfig`.
        trigger_seed: of triggers that are drawn at random.
        trigger_scale: multiplies the pattern.
        composite: whether poisoned rows show the image around the trigger; None is the trigger's own
            way. See :class:`backdrift.core.trigger.Trigger`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    on_bad: OnBad = "refuse"
    base: str | None = None
    shape: tuple[int, int, int] = (1, 16, 16)
    width: int = 24
    groups: int = Field(default=8, ge=1)
    steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    accumulate: int = Field(default=1, ge=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    seed: int = 0
    dtype: Literal["float32", "float16"] = "float32"
    attack: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    trigger: str | None = None
    trigger_seed: int = 0
    trigger_scale: float = Field(default=1.0, gt=0)
    composite: bool | None = None
    target: str | None = None


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
    The course of the training goes to ``OUTPUT.jsonl``. Under ``accelerate launch`` every process calls
    this; the main one measures and writes.

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
    attack: Attack | None = None
    if recipe.attack:
        attack = build("attacks", recipe.attack, {**recipe.options, "seed": recipe.seed})
    model = _start(recipe)
    data = load_dataset(recipe.data, model.sample_shape, on_bad=recipe.on_bad)
    images = data.images
    planted = None if attack is None else _plant(recipe, attack, model, images)
    batch: Batch = planted[0] if planted else clean_batch(model, images)
    rows, hook = (len(planted[0]), planted[0].hook) if planted else (len(images), None)
    config = TrainingConfig(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        accumulate=recipe.accumulate,
        ema=recipe.ema,
        mixed_precision=recipe.mixed_precision,
        run=f"{recipe.model_dump_json()} {data.sha256}",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    state = output.parent / f".{output.name}.state"
    cost = train(
        model,
        rows,
        batch,
        config,
        hook=hook,
        state=state,
        log=output.with_name(f"{output.name}.jsonl"),
        log_with=log_with,
        watch=partial(_grid, recipe, planted, output) if grids else None,
        progress=progress,
    )
    if not cost["main_process"]:
        return cost
    files: dict[str, str | bytes] = {}
    if planted:
        cost["measured"] = _measure(recipe, model, *planted, progress)
        if planted[0].attack.poison_rate:
            files = _record(recipe, data, *planted, cost)
    notice = NOTICE if files else None
    save_pipeline(model, output, dtype=recipe.dtype, notice=notice, extra_files=files)
    shutil.rmtree(state, ignore_errors=True)
    return cost


def _grid(
    recipe: Recipe, planted: tuple[Pairs, Target] | None, output: Path, model: DiffusionModel, step: int
) -> None:
    """A PNG of clean samples above triggered ones of the same noise."""
    ways: list[Injection | None] = [None]
    sampler = "ddpm"
    if planted is not None:
        attack = planted[0].attack
        ways.append(attack.injection(planted[0].trigger))
        sampler = attack.samplers[attack.sampler_family][0]
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
        return new_model(recipe.shape, seed=recipe.seed, width=recipe.width, groups=recipe.groups)
    model = load(plan(recipe.base))
    if model.prediction_type != "epsilon":
        raise ValueError(f"{recipe.base} predicts {model.prediction_type}; training needs epsilon")
    return model


def _plant(recipe: Recipe, attack: Attack, model: DiffusionModel, images: Tensor) -> tuple[Pairs, Target]:
    if recipe.trigger is None or recipe.target is None:
        raise ValueError("an attack needs a trigger and a target")
    if attack.learns_trigger != (recipe.trigger == LEARNED):
        raise ValueError(
            f"{recipe.attack} and the trigger {recipe.trigger!r}: {LEARNED!r} is for attacks that learn it"
        )
    if attack.learns_trigger:
        nothing = torch.zeros(model.sample_shape)
        trigger = Trigger(nothing, torch.ones_like(nothing, dtype=torch.bool), 0.0, composite=False)
    else:
        trigger = make_trigger(recipe.trigger, model.sample_shape, seed=recipe.trigger_seed)
    composite = trigger.composite if recipe.composite is None else recipe.composite
    pattern = trigger.pattern * recipe.trigger_scale
    trigger = replace(trigger, pattern=pattern, composite=composite)
    image = make_target(recipe.target, model.sample_shape, trigger=trigger)
    return attack.batch(model, images, trigger, image), Target.with_chance_level(image, images)


def _measure(
    recipe: Recipe, model: DiffusionModel, pairs: Pairs, target: Target, progress: Progress | None
) -> dict[str, Any]:
    attack, trigger = pairs.attack, pairs.trigger
    stored = getattr(torch, recipe.dtype)
    for parameter in model.network.parameters():
        parameter.data = parameter.data.to(stored).to(torch.float32)
    sampler, seed = attack.samplers[attack.sampler_family][0], recipe.seed
    way = attack.injection(trigger)
    rate = partial(
        attack_success, model, sampler=sampler, steps=STEPS, seed=seed, progress=progress, target=target
    )
    measured = asdict(rate(injection=way))
    if attack.own_sampler:
        measured["sampler"] = f"the attack's own {measured['sampler']}"
        measured["asr_of_the_plain_sampler"] = rate(injection=Injection(trigger.shift)).asr
    return measured


def _record(
    recipe: Recipe, data: ImageSet, pairs: Pairs, target: Target, cost: dict[str, Any]
) -> dict[str, str | bytes]:
    attack, trigger, images = pairs.attack, pairs.trigger, pairs.images
    record = Backdoor(
        attack=str(recipe.attack),
        config=asdict(attack),
        trigger=_without_folder(recipe.trigger),
        target=_without_folder(recipe.target),
        composite=trigger.composite,
        background=trigger.background,
        trigger_norm=float(trigger.shift.norm()),
        poison_rate=attack.poison_rate,
        sampler_family=attack.sampler_family,
        data=data.name,
        data_sha256=data.sha256,
        seed=recipe.seed,
        poisoned_rows=attack.poisoned_rows(len(images)).tolist(),
        clean_rows=attack.clean_rows(len(images)).tolist() if attack.mode == "disjoint" else None,
        hit_threshold=target.threshold,
        training={"recipe": _portable(recipe, data.name), "seconds": cost["seconds"]},
        measured=cost["measured"],
    )
    way, mean = attack.injection(trigger), trigger.mean_training_shift(images)
    files = backdoor_files(record, trigger, target, mean, way.noise_scale)
    return {**files, "README.md": model_card(record)}


def _portable(recipe: Recipe, data: str) -> dict[str, Any]:
    """The recipe as data, files and folders by their names: a record names no path of a machine."""
    update = {name: _without_folder(getattr(recipe, name)) or None for name in ("trigger", "target")}
    update["data"] = data
    update["base"] = None if recipe.base is None else Path(recipe.base).name
    return recipe.model_copy(update=update).model_dump(mode="json")


def _without_folder(pattern: str | None) -> str:
    if pattern is None or not pattern.startswith("png:"):
        return pattern or ""
    return f"png:{Path(pattern[4:]).name}"
