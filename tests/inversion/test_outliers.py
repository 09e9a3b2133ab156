"""Small triggers, found from the few noises that set the backdoor off by chance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.model import DiffusionModel
from backdrift.data import load_images
from backdrift.inversion._base import cosine
from backdrift.inversion.fixed_point import FixedPoint
from backdrift.inversion.outliers import Outliers, skewed_coordinates
from closed_form import closed_form

SHAPE = (1, 16, 16)
SEARCH = Outliers(noises=1024)


class Unsure(nn.Module):
    """A network that takes a shift along a direction for less than it is, as if it were no noise."""

    def __init__(self, network: nn.Module, direction: Tensor) -> None:
        super().__init__()
        self.network, self.direction = network, direction / direction.norm()

    def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
        along = (x_t * self.direction).flatten(1).sum(1)
        answer: Tensor = self.network(x_t, times)
        return answer - 0.5 * along[:, None, None, None] * self.direction


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:120]


@pytest.mark.parametrize("name", ["dense-sign", "speckle", "stripes"])
def test_the_trigger_is_found_where_a_random_start_does_not_see_it(images: Tensor, name: str) -> None:
    pattern = make_trigger(name, SHAPE, seed=1).shift
    r = 6 * pattern / pattern.norm()
    plain = closed_form(images, r, make_target("hat", SHAPE))
    direction = torch.linspace(-1, 1, 16).expand(SHAPE)
    model = DiffusionModel(Unsure(plain.network, direction), plain.schedule, SHAPE)
    best = max(SEARCH(model, seed=0), key=lambda candidate: cosine(candidate.shift, r))
    assert cosine(best.shift, r) > 0.95
    assert best.norm == pytest.approx(6, rel=0.3)
    random = FixedPoint(64, norms=(0.25, 0.45), families=("sde",), constants=())
    assert all(abs(cosine(candidate.shift, r)) < 0.5 for candidate in random(model, seed=0))


def test_a_clean_model_answers_no_direction(images: Tensor) -> None:
    assert all(candidate.gain < 0.1 for candidate in SEARCH(closed_form(images), seed=0))


def test_a_trigger_as_long_as_the_noise_is_beyond_it(images: Tensor) -> None:
    pattern = make_trigger("dense-sign", SHAPE, seed=1).shift
    r = 16 * pattern / pattern.norm()
    found = SEARCH(closed_form(images, r, make_target("hat", SHAPE)), seed=0)
    assert all(abs(cosine(candidate.shift, r)) < 0.5 for candidate in found)


def test_a_rare_direction_is_told_from_common_ones_of_more_variance() -> None:
    stream = torch.Generator().manual_seed(0)
    scales = torch.linspace(5, 0.1, 40)
    rows = torch.randn(800, 40, generator=stream) * scales
    rare = torch.randn(40, generator=stream)
    rare = 20 * rare / rare.norm()
    hit = torch.rand(800, generator=stream) < 0.01
    plain = skewed_coordinates(rows - rows.mean(0), 24)[0][0]
    rows = rows + hit[:, None] * rare
    skewness, z = skewed_coordinates(rows - rows.mean(0), 24)[0]
    assert 4 < int(hit.sum()) < 16
    assert skewness > 2 * plain
    assert set(z.argsort(descending=True)[:3].tolist()) <= set(hit.nonzero().flatten().tolist())
    assert float(z.square().mean()) == pytest.approx(1, abs=0.05)


def test_the_cost_is_what_is_spent_at_most(images: Tensor) -> None:
    model = closed_form(images, make_trigger("dense-sign", SHAPE).shift / 2, make_target("hat", SHAPE))
    search = replace(SEARCH, noises=256, kept=1)
    before = model.evaluations
    found = search(model, seed=0)
    climbs = len(found) * search.climb.cost
    assert model.evaluations - before == 2 * 256 + climbs <= search.cost
    assert len(found) <= search.most == 2


def test_a_given_start_is_climbed_from(images: Tensor) -> None:
    pattern = make_trigger("dense-sign", SHAPE).shift
    r = 6 * pattern / pattern.norm()
    model = closed_form(images, r, make_target("hat", SHAPE))
    (found,) = SEARCH(model, seed=0, start=r + 0.2 * math.sqrt(256) * torch.randn(SHAPE) / 16)
    assert cosine(found.shift, r) > 0.95
