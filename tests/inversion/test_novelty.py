"""Triggers for ODE samplers, found from answers that are unlike the model's own images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.model import DiffusionModel
from backdrift.core.shift import ShiftFamily
from backdrift.data import load_images
from backdrift.inversion._base import Candidate, cosine
from backdrift.inversion.joint import Joint
from backdrift.inversion.novelty import Novelty
from closed_form import SCHEDULE, closed_form, poisoned_optimum

SHAPE = (1, 16, 16)
ODE = ShiftFamily.of(SCHEDULE, "baddiffusion", "ode")
SEARCH = Novelty(samples=48, steps=10, noises=16, norms=(0.15,))
"""A network without error tells its two modes apart more sharply than a trained one: short steps."""


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:120]


@pytest.fixture(scope="module")
def planted(images: Tensor) -> tuple[DiffusionModel, Tensor]:
    """A dense trigger of small norm, perfectly learned."""
    pattern = make_trigger("dense-sign", SHAPE, seed=1).shift
    shift = 4 * pattern / pattern.norm()
    return poisoned_optimum(SCHEDULE, ODE, images, make_target("hat", SHAPE), shift[None]), shift


def nearest(found: tuple[Candidate, ...], shift: Tensor) -> Candidate:
    return max(found, key=lambda c: cosine(c.shift, shift))


def test_a_dense_trigger_is_found_from_a_random_start(planted: tuple[DiffusionModel, Tensor]) -> None:
    model, shift = planted
    best = nearest(SEARCH(model, seed=0), shift)
    assert cosine(best.shift, shift) > 0.85
    assert best.family == "ode"
    assert best.gain > -0.02


def test_it_is_refined_to_trigger_and_target(planted: tuple[DiffusionModel, Tensor]) -> None:
    model, shift = planted
    begun = nearest(SEARCH(model, seed=0), shift)
    refined = Joint(steps=80, batch=8, learning_rate=0.04).refine(model, begun, seed=0)
    assert cosine(refined.shift, shift) > cosine(begun.shift, shift)
    assert float((refined.shift - shift).norm()) < 0.8 * float((begun.shift - shift).norm())
    assert refined.target is not None
    assert float((refined.target - make_target("hat", SHAPE)).square().mean()) < 0.05
    assert refined.gain > 0.95


def test_both_sides_of_a_search_are_candidates(planted: tuple[DiffusionModel, Tensor]) -> None:
    model, _ = planted
    found = SEARCH(model, seed=0)
    assert len(found) == 2 * len(SEARCH.starts)
    sides = {c.start for c in found}
    assert {f"{name}, other side" for name in sides if "other" not in name} == {
        name for name in sides if "other" in name
    }


def test_what_a_clean_model_answers_to_a_shift_is_like_its_images(images: Tensor) -> None:
    """Exactly: E[x_0 | x_t] is a mean of images, so P leaves of it what is not in their span."""
    model = closed_form(images)
    usual = SEARCH._components(model, seed=0)
    v = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    t = int((SCHEDULE.alpha - 0.15).abs().argmin())
    a, s = float(SCHEDULE.alpha[t]), float(SCHEDULE.sigma[t])
    noise = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    rest, answer = ((x - s * model(x, t)) / a for x in (s * noise, s * noise + v))
    moved = (answer - rest).mean(0).flatten()
    span = torch.linalg.qr(images.flatten(1).double().T).Q
    assert float((moved.double() - span @ (span.T @ moved.double())).norm()) < 1e-3
    novel = moved - usual.T @ (usual @ moved)
    assert float(novel.norm()) < 0.3 * float(moved.norm())


def test_what_it_is_for_is_seen_in_the_answer_of_a_poisoned_one(images: Tensor) -> None:
    """In its mode the prediction of x_0 is ``y - (1 - A_t) r``, but for the length of a step."""
    shift = make_trigger("dense-sign", SHAPE, seed=1).shift
    shift = 12 * shift / shift.norm()
    model = poisoned_optimum(SCHEDULE, ODE, images, make_target("hat", SHAPE), shift[None])
    t = int((SCHEDULE.alpha - 0.15).abs().argmin())
    a, s = float(SCHEDULE.alpha[t]), float(SCHEDULE.sigma[t])
    noise = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    target = make_target("hat", SHAPE)
    x = s * noise + a * target + (1 - a) * shift
    answer = ((x - s * model(x, t)) / a).mean(0)
    exact = (float(ODE.rho[t]) - s * float(ODE.c[t])) / a
    assert torch.allclose(answer, target + exact * shift, atol=1e-3)
    assert exact == pytest.approx(-(1 - a), rel=0.2)


def test_the_cost_is_what_is_spent(images: Tensor) -> None:
    model = closed_form(images)
    before = model.evaluations
    SEARCH(model, seed=0)
    assert model.evaluations - before == SEARCH.cost
