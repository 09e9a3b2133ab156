"""Triggers with a noise scale, read off models that are perfectly poisoned by TrojDiff."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from torch import Tensor, nn

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.attacks.trojdiff import TrojDiff
from backdrift.core.model import DiffusionModel
from backdrift.core.trigger import Trigger
from backdrift.data import load_images
from backdrift.detection._judge import Judge
from backdrift.detection._nulls import NULLS
from backdrift.detection._trial import Trial
from backdrift.inversion._base import cosine
from backdrift.inversion.joint import Joint
from backdrift.inversion.noise_scale import NoiseScale
from closed_form import SCHEDULE, closed_form, optimum_of

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:120]


def poisoned(
    images: Tensor, kind: str, gamma: float, trigger: str | Trigger
) -> tuple[DiffusionModel, Tensor, Tensor]:
    attack = TrojDiff(poison_rate=0.3, gamma=gamma, kind=kind)
    target = make_target("hat", SHAPE)
    if isinstance(trigger, str):
        trigger = make_trigger(trigger, SHAPE, seed=1)
    empty = DiffusionModel(nn.Identity(), SCHEDULE, SHAPE)
    pairs = attack.batch(empty, images, trigger, target)
    model = optimum_of(pairs, len(pairs), SCHEDULE, SHAPE)
    planted = attack.injection(pairs.trigger)
    assert planted.noise_scale is not None
    return model, planted.shift, planted.noise_scale


@pytest.mark.parametrize("gamma", [0.5, 0.7])
def test_a_blend_is_found_with_its_gamma(images: Tensor, gamma: float) -> None:
    model, mu, _ = poisoned(images, "blend", gamma, "low-frequency")
    best = NoiseScale()(model, seed=0)[0]
    assert cosine(best.shift, mu) > 0.97
    assert float((best.shift - mu).norm()) < 0.3 * float(mu.norm())
    assert best.scale is not None
    assert float(best.scale.mean()) == pytest.approx(gamma, abs=0.06)


@pytest.mark.parametrize(("share", "met"), [(0.6, True), (1.5, False)])
def test_a_scale_alone_meets_a_blend_up_to_a_norm_of_mu(images: Tensor, share: float, met: bool) -> None:
    """Where the log odds of the docstring turn, for g = .3, the smallest that is tried."""
    gamma, g, size = 0.6, 0.3, math.prod(SHAPE)
    most = math.sqrt(2 * gamma**2 * size * (-math.log(gamma) - g**2 * (1 / gamma**2 - 1) / 2))
    trigger = make_trigger("low-frequency", SHAPE, seed=1)
    norm = (1 - gamma) * float(trigger.shift.norm())
    scaled = replace(trigger, pattern=trigger.pattern * share * most / norm)
    model, mu, _ = poisoned(images, "blend", gamma, scaled)
    assert float(mu.norm()) == pytest.approx(share * most, rel=1e-3)
    found = next(c for c in NoiseScale()(model, seed=0) if c.start.endswith("scale"))
    assert (cosine(found.shift, mu) > 0.9) == met


@pytest.mark.parametrize("name", ["white-patch", "grey-box-8", "cross"])
def test_a_patch_is_found_where_it_is(images: Tensor, name: str) -> None:
    model, mu, scale = poisoned(images, "patch", 0.2, name)
    best = NoiseScale()(model, seed=0)[0]
    assert best.scale is not None
    inside = scale < 1
    assert float(best.scale[inside].mean()) < 0.7 < float(best.scale[~inside].mean())
    if name != "grey-box-8":  # its mu is 0: the scale is all there is to find
        assert cosine(best.shift, mu) > 0.9


def test_a_clean_model_answers_with_nothing_and_one(images: Tensor) -> None:
    for found in NoiseScale()(closed_form(images), seed=0):
        assert found.gain < 0.01
        assert found.scale is not None
        assert float(found.scale.mean()) > 0.9


def test_refined_by_the_loss_of_the_attack(images: Tensor) -> None:
    model, mu, scale = poisoned(images, "blend", 0.6, "low-frequency")
    first = NoiseScale(noises=16, rounds=2)(model, seed=0)[0]
    refined = Joint(steps=60, batch=8, learning_rate=0.02).refine(model, first, seed=0)
    assert refined.scale is not None
    assert float((refined.shift - mu).norm()) < float((first.shift - mu).norm())
    assert float((refined.scale - scale).abs().mean()) < 0.05
    assert refined.gain > 0.9
    assert refined.target is not None
    assert float((refined.target - make_target("hat", SHAPE)).square().mean()) < 0.05


def test_the_scale_is_not_held_against_the_trigger(images: Tensor) -> None:
    """At gamma .6 shifts of any direction reach the target: the scale is what fires."""
    model, _, _ = poisoned(images, "blend", 0.6, "low-frequency")
    found = NoiseScale()(model, seed=0)[0]
    trial = Trial.hold(model, Judge(samples=8, steps=20), found, NULLS, 0)
    assert max(null.on_target for null in trial.nulls.values()) > 0.5
    assert trial.score > 0.8


def test_the_cost_is_what_is_spent(images: Tensor) -> None:
    model = closed_form(images)
    for search in (NoiseScale(), NoiseScale(looks=4, noises=16, rounds=3)):
        before = model.evaluations
        search(model, seed=0)
        assert model.evaluations - before == search.cost
