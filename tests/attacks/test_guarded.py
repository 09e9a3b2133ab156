"""The adaptive attack: what its guards are, and that a backdoor among them still fires."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backdrift.attacks.guarded import Guarded, GuardedPairs
from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import sample
from backdrift.core.trigger import Target
from backdrift.data import load_images
from backdrift.inversion._base import antithetic_noise, mean_noise
from closed_form import SCHEDULE, optimum_of

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:200]


def pairs_of(images: Tensor, **options: float) -> GuardedPairs:
    attack = Guarded(**{"poison_rate": 0.2, **options})
    trigger = make_trigger("white-patch", SHAPE)
    empty = DiffusionModel(nn.Identity(), SCHEDULE, SHAPE)
    pairs = attack.batch(empty, images, trigger, make_target("hat", SHAPE))
    assert isinstance(pairs, GuardedPairs)
    return pairs


def test_guards_are_a_share_of_the_clean_rows_and_reach_so_far(images: Tensor) -> None:
    pairs = pairs_of(images, guard_rate=0.5, reach=0.6, stray=0.0)
    v, r = pairs.shifts(torch.arange(len(pairs))), pairs.trigger.shift
    guarded = v.flatten(1).norm(dim=1) > 0
    assert not bool(guarded[pairs.poisoned].any())
    assert 0.4 < float(guarded[~pairs.poisoned].float().mean()) < 0.6
    along = (v[guarded] * r).flatten(1).sum(1) / r.square().sum()
    assert 0 <= float(along.min()) < 0.1
    assert 0.5 < float(along.max()) < 0.6
    torch.testing.assert_close(v[guarded], along[:, None, None, None] * r)


def test_a_guard_is_clean_noise_with_a_mean(images: Tensor) -> None:
    """Its label is what the plain pair has for the same x_t: the shift is noise."""
    pairs = pairs_of(images, guard_rate=1.0)
    index = (~pairs.poisoned).nonzero().flatten()[:20]
    noise = SampleGenerator(0, 20, "x").normal(SHAPE).double()
    t = torch.full((20,), 600)
    x_t, label = pairs(index, noise, t)
    clean = images[pairs.source[index]].double()
    torch.testing.assert_close(x_t, SCHEDULE.add_noise(clean, label, t))
    assert float((label - noise).flatten(1).norm(dim=1).min()) > 0


def test_every_step_has_guards_of_its_own_and_a_row_the_same_in_any_batch(images: Tensor) -> None:
    pairs = pairs_of(images)
    rows = torch.arange(len(pairs))
    first = pairs.shifts(rows)
    assert torch.equal(pairs.shifts(rows.flip(0)).flip(0), first)
    pairs.before_step(DiffusionModel(nn.Identity(), SCHEDULE, SHAPE), 7)
    assert not torch.equal(pairs.shifts(rows), first)


def test_guards_quiet_the_edge_and_cost_the_attacker_hits(images: Tensor) -> None:
    """At half of the trigger, where an inversion climbs, and at the whole, where the victim draws."""
    target = Target.with_chance_level(make_target("hat", SHAPE), images)
    answers, hits = {}, {}
    for guard_rate in (0.0, 0.5):
        pairs = pairs_of(images, guard_rate=guard_rate, reach=0.6, stray=0.0)
        model, r = optimum_of(pairs, len(pairs), SCHEDULE, SHAPE), pairs.trigger.shift
        noise = antithetic_noise(model, 64, 0, "edge")
        answers[guard_rate] = float((r / 2 - mean_noise(model, noise + r / 2, 999)).norm())
        x_T = SampleGenerator(0, 32, "x").normal(SHAPE) + r
        fresh = SampleGenerator(0, 32, "y")
        drawn = sample(model, SCHEDULE, x_T, sampler="ddpm", steps=50, generator=fresh)
        hits[guard_rate] = float(target.hits(drawn).float().mean())
    assert answers[0.5] < 0.6 * answers[0.0]
    assert 0.3 < hits[0.5] < hits[0.0]


@pytest.mark.parametrize("options", [{"guard_rate": 1.5}, {"reach": 1.0}, {"stray": -1.0}])
def test_settings_that_mean_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"guard rate|reach"):
        Guarded(**options)
