"""Starts far below the norm of the trigger, for networks that answer large shifts without a backdoor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.model import DiffusionModel
from backdrift.data import load_images
from backdrift.inversion._base import cosine
from backdrift.inversion.fixed_point import GROWTH, FixedPoint
from closed_form import closed_form

SHAPE = (1, 8, 8)
LARGE = FixedPoint(noises=32, rounds=8, norms=(0.9,), families=("sde",), deflations=0, constants=())
SMALL = replace(LARGE, norms=(), tangents=(0.1,))


class Unsure(nn.Module):
    """A network that takes a large shift along a direction for less than it is, as if it were no noise."""

    def __init__(self, network: nn.Module, direction: Tensor) -> None:
        super().__init__()
        self.network, self.direction = network, direction / direction.norm()

    def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
        along = (x_t * self.direction).flatten(1).sum(1)
        less = 0.9 * along * (along / (along.abs() + 1)) ** 4
        answer: Tensor = self.network(x_t, times)
        return answer - less[:, None, None, None] * self.direction


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:200]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_trigger_is_found_where_large_shifts_are_answered_anyway(images: Tensor, seed: int) -> None:
    r = make_trigger("white-patch", SHAPE).shift
    direction = torch.linspace(-1, 1, 8).expand(SHAPE)
    plain = closed_form(images, r, make_target("hat", SHAPE))
    model = DiffusionModel(Unsure(plain.network, direction), plain.schedule, SHAPE)
    (large,) = LARGE(model, seed=seed)
    (small,) = SMALL(model, seed=seed)
    assert abs(cosine(large.shift, r)) < 0.7
    assert cosine(small.shift, r) > 0.85
    assert 0.4 < small.norm / float(r.norm()) < 1.2
    assert small.start.endswith(", tangent")


@pytest.mark.parametrize("name", ["dense-sign", "white-patch", "low-frequency"])
def test_it_ends_at_the_trigger_and_not_at_its_opposite(images: Tensor, name: str) -> None:
    r = make_trigger(name, SHAPE).shift
    model = closed_form(images, r, make_target("hat", SHAPE))
    for start in (r, -r, None):
        (found,) = SMALL(model, seed=1, start=start)
        assert cosine(found.shift, r) > 0.95


def test_the_cost_is_what_is_spent(images: Tensor) -> None:
    model = closed_form(images)
    search = replace(SMALL, deflations=2)
    assert [start.deflated for start in search.starts] == [0, 1, 2]
    before = model.evaluations
    found = search(model, seed=0)
    assert model.evaluations - before == search.cost == 3 * 32 * (8 + 2 + len(GROWTH))
    assert {len(candidate.history) for candidate in found} == {8 + len(GROWTH)}
