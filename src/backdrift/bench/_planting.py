"""The attacked side of a recipe: what is planted, how it is measured, and the record of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from backdrift.attacks._base import Attack, Pairs
from backdrift.attacks._targets import choose_target
from backdrift.attacks.patterns import make_trigger
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build
from backdrift.core.trigger import Target, TargetSet, Trigger
from backdrift.data import ImageSet
from backdrift.groundtruth import Backdoor, backdoor_files, model_card
from backdrift.metrics.asr import attack_success

if TYPE_CHECKING:
    from backdrift.bench.recipes import Recipe

SAMPLES, STEPS = 256, 100
"""Of the ASR in a record."""
LEARNED = "learned"
"""Name of the trigger of an attack that learns it."""


@dataclass(frozen=True, eq=False)
class Planting:
    """A backdoor on its way into a model: the poisoned rows and what they are to draw."""

    recipe: Recipe
    data: ImageSet
    pairs: Pairs
    target: Target | TargetSet

    @property
    def attack(self) -> Attack:
        """With its settings."""
        return self.pairs.attack

    @classmethod
    def of(cls, recipe: Recipe, model: DiffusionModel, data: ImageSet) -> Planting:
        """What a recipe with an attack asks for.

        Raises:
            ValueError: the recipe does not fit together.
        """
        if recipe.trigger is None or recipe.target is None:
            raise ValueError("an attack needs a trigger and a target")
        attack = build("attacks", str(recipe.attack), {**recipe.options, "seed": recipe.seed})
        trigger = _trigger(recipe, attack, model)
        image = choose_target(recipe.target, data, trigger=trigger, on_bad=recipe.on_bad)
        single = image.ndim == 3
        target = Target.with_chance_level(image, data.images) if single else TargetSet(image, data.images)
        aim = model.encode(image[None])[0] if single else model.encode(image)
        pairs = attack.batch(model, model.encode(data.images), trigger, aim)
        return cls(recipe, data, pairs, target)

    def measure(
        self, model: DiffusionModel, progress: Callable[[int, int, str], None] | None = None
    ) -> dict[str, Any]:
        """ASR with the weights as they will be stored."""
        recipe, attack, trigger = self.recipe, self.attack, self.pairs.trigger
        stored = getattr(torch, recipe.dtype)
        for parameter in model.network.parameters():
            parameter.data = parameter.data.to(stored).to(torch.float32)
        sampler, seed = attack.samplers_on(model.schedule)[0], recipe.seed
        rate = partial(
            attack_success,
            model,
            sampler=sampler,
            steps=STEPS,
            n=SAMPLES,
            seed=seed,
            progress=progress,
            target=self.target,
        )
        measured = asdict(rate(injection=attack.injection(trigger)))
        if attack.own_sampler:
            measured["sampler"] = f"the attack's own {measured['sampler']}"
            measured["asr_of_the_plain_sampler"] = rate(injection=Injection(trigger.shift)).asr
        return measured

    def files(self, training: dict[str, Any], measured: dict[str, Any]) -> dict[str, str | bytes]:
        """Record, tensors and model card, to lie beside the checkpoint; none of a poison rate of 0.

        Args:
            training: what is recorded of it beside the recipe.
            measured: of :meth:`measure`; empty where nothing was.
        """
        attack, trigger, images = self.attack, self.pairs.trigger, self.data.images
        if not attack.poison_rate:
            return {}
        record = Backdoor(
            attack=str(self.recipe.attack),
            config=asdict(attack),
            trigger=_without_folder(self.recipe.trigger),
            target=_without_folder(self.recipe.target),
            composite=trigger.composite,
            background=trigger.background,
            trigger_norm=float(trigger.shift.norm()),
            poison_rate=attack.poison_rate,
            sampler_family=attack.sampler_family,
            data=self.data.name,
            data_sha256=self.data.sha256,
            on_bad=self.recipe.on_bad,
            seed=self.recipe.seed,
            poisoned_rows=attack.poisoned_rows(len(images)).tolist(),
            clean_rows=attack.clean_rows(len(images)).tolist() if attack.mode == "disjoint" else None,
            hit_threshold=self.target.threshold if isinstance(self.target, Target) else None,
            training={"recipe": _portable(self.recipe, self.data.name), **training},
            measured=measured,
        )
        way, mean = attack.injection(trigger), trigger.mean_training_shift(self.pairs.images)
        files = backdoor_files(record, trigger, self.target, mean, way.noise_scale)
        return {**files, "README.md": model_card(record)}


def _trigger(recipe: Recipe, attack: Attack, model: DiffusionModel) -> Trigger:
    if attack.learns_trigger != (recipe.trigger == LEARNED):
        raise ValueError(
            f"{recipe.attack} and the trigger {recipe.trigger!r}: {LEARNED!r} is for attacks that learn it"
        )
    if attack.learns_trigger:
        nothing = torch.zeros(model.sample_shape)
        trigger = Trigger(nothing, torch.ones_like(nothing, dtype=torch.bool), 0.0, composite=False)
    else:
        trigger = make_trigger(str(recipe.trigger), model.sample_shape, seed=recipe.trigger_seed)
    composite = trigger.composite if recipe.composite is None else recipe.composite
    return replace(trigger, pattern=trigger.pattern * recipe.trigger_scale, composite=composite)


def _portable(recipe: Recipe, data: str) -> dict[str, Any]:
    """The recipe as data, files and folders by their names: a record names no path of a machine."""
    update = {name: _without_folder(getattr(recipe, name)) or None for name in ("trigger", "target")}
    update["data"] = data
    update["base"] = None if recipe.base is None else Path(recipe.base).name
    return recipe.model_copy(update=update).model_dump(mode="json", exclude={"keep"})


def _without_folder(pattern: str | None) -> str:
    """``png:PATH`` and ``data:folder:PATH@CLASS`` with the last part of the path alone."""
    head, colon, path = (pattern or "").rpartition(":")
    if head not in ("png", "data:folder"):
        return pattern or ""
    return f"{head}{colon}{Path(path).name}"
