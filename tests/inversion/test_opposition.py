"""Large triggers for ODE samplers, found from what the model answers against."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.model import DiffusionModel
from backdrift.core.shift import ShiftFamily
from backdrift.data import load_images
from backdrift.inversion._base import cosine
from backdrift.inversion.opposition import Opposition
from closed_form import SCHEDULE, closed_form, poisoned_optimum

SHAPE = (1, 16, 16)
ODE = ShiftFamily.of(SCHEDULE, "baddiffusion", "ode")
SEARCH = Opposition(starts=(-0.8,), noises=16)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:120]


def planted(images: Tensor, name: str) -> tuple[DiffusionModel, Tensor]:
    r = make_trigger(name, SHAPE).shift
    return poisoned_optimum(SCHEDULE, ODE, images, make_target("hat", SHAPE), r[None]), r


@pytest.mark.parametrize("name", ["stop-sign", "grey-box-14", "glasses"])
def test_the_trigger_is_found_from_a_dark_start(images: Tensor, name: str) -> None:
    model, r = planted(images, name)
    shorter, found = sorted(SEARCH(model, seed=0), key=lambda candidate: candidate.norm)
    assert shorter.norm == pytest.approx(0.75 * found.norm)
    assert min(found.history) < -0.7
    assert cosine(found.shift, r) > 0.8
    assert 0.8 < found.norm / float(r.norm()) < 1.5


def test_the_answer_of_the_optimum_at_its_trigger_is_the_formula(images: Tensor) -> None:
    """f = (<y - w(0), v> - ||v||^2) / ||v||^2 at v = (1 - A) r, where the backdoor is sure."""
    model, r = planted(images, "stop-sign")
    once = replace(SEARCH, starts=(float(r.norm()) / 16 * 0.85,), rounds=1)
    found, _ = once(model, seed=0, start=r)
    clean, _ = once(closed_form(images), seed=0, start=r)
    y, v = make_target("hat", SHAPE), 0.85 * r
    mean = images.mean(0)
    assert found.history[0] == pytest.approx(float(((y - mean) * v).sum() / (v * v).sum()) - 1, abs=0.1)
    assert clean.history[0] > -0.1


def test_a_clean_model_is_followed(images: Tensor) -> None:
    found, _ = SEARCH(closed_form(images), seed=0)
    assert min(found.history) > -0.5


def test_the_cost_is_what_is_spent(images: Tensor) -> None:
    model, search = closed_form(images), Opposition(noises=8, rounds=3)
    before = model.evaluations
    found = search(model, seed=0)
    assert model.evaluations - before == search.cost == 3 * 8 * (1 + 3 * 3)
    assert len({candidate.start for candidate in found}) == 6
