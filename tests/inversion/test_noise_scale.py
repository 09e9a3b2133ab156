"""Triggers with a noise scale, read off models that are perfectly poisoned by TrojDiff."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.attacks.trojdiff import TrojDiff
from backdrift.core.model import DiffusionModel
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


def poisoned(images: Tensor, kind: str, gamma: float, name: str) -> tuple[DiffusionModel, Tensor, Tensor]:
    attack = TrojDiff(poison_rate=0.3, gamma=gamma, kind=kind)
    trigger, target = make_trigger(name, SHAPE, seed=1), make_target("hat", SHAPE)
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
