"""Rates, means and their intervals; samples that do not depend on the batch."""

from __future__ import annotations

import math

import pytest
import torch

from backdrift.core.injection import Injection
from backdrift.core.trigger import Target
from backdrift.data import load_images
from backdrift.metrics.asr import attack_success
from backdrift.metrics.bootstrap import Mean, quantiles
from backdrift.metrics.draws import batches, draw, latents
from backdrift.metrics.rates import paired, rate, wilson
from closed_form import closed_form
from tiny import SHAPE, tiny_model


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 10), (50, 100), (999, 1000), (12, 12)])
def test_wilson_against_its_closed_form(hits: int, n: int) -> None:
    """The ends solve (p - hits/n)^2 = z^2 p (1 - p) / n."""
    z, p = 1.959964, hits / n
    a, b, c = 1 + z * z / n, -(2 * p + z * z / n), p * p
    root = math.sqrt(b * b - 4 * a * c)
    assert wilson(hits, n) == pytest.approx(((-b - root) / (2 * a), (-b + root) / (2 * a)), abs=1e-9)
    assert rate(hits, n).value == p


def test_a_mean_is_streamed_with_an_interval_that_covers_it() -> None:
    values = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = Mean(seed=1)
    for part in values.split(150):
        mean.update(part)
    found = mean.compute()
    assert found.value == pytest.approx(float(values.mean()))
    half = 1.96 * float(values.std()) / 20
    assert found.high - found.low == pytest.approx(2 * half, rel=0.25)
    assert found.low < 0.5 < found.high
    assert found.n == 400
    with pytest.raises(ValueError, match="at least 20 samples"):
        Mean().compute()
    assert all(map(math.isnan, quantiles(torch.empty(0))))


@pytest.mark.slow
def test_the_interval_of_a_mean_covers_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        values = torch.rand(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        mean = Mean(seed)
        mean.update(values.square())
        found = mean.compute()
        covered += found.low < 1 / 3 < found.high
    low, high = wilson(covered, 200)
    assert low < 0.95
    assert high > 0.92


def test_samples_do_not_depend_on_the_batch() -> None:
    found = []
    for size in (9, 4, 1):
        model = tiny_model()
        model.batch_size = size
        parts = list(batches(model, None, sampler="ddpm", steps=3, n=9, seed=2))
        assert max(map(len, parts)) == size
        found.append(torch.cat(parts))
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.allclose(found[0], found[2], atol=1e-4)


def test_latents_end_where_the_samples_are() -> None:
    model, shift = tiny_model(), Injection(torch.full(SHAPE, 0.5))
    model.batch_size = 2
    states, times = latents(model, shift, sampler="ddim", steps=7, n=3, seed=0, frames=4)
    images = draw(model, shift, sampler="ddim", steps=7, n=3, seed=0)
    assert states.shape == (3, 4, *SHAPE)
    assert torch.equal(states[:, -1], images)
    assert times == sorted(times, reverse=True)
    whole, every = latents(model, None, sampler="ddim", steps=3, n=1, seed=0, frames=10)
    assert (whole.shape[1], len(every)) == (3, 3)


def test_a_perfect_backdoor_scores_one_and_a_clean_model_nothing() -> None:
    digits = load_images("digits", (1, 8, 8))[:60]
    shift, image = torch.full((1, 8, 8), 1.5), torch.zeros(1, 8, 8)
    image[:, :4] = 1.0
    target = Target.with_chance_level(image, digits)
    found = attack_success(
        closed_form(digits, shift, image), Injection(shift), target, sampler="ddpm", steps=30, n=40, seed=0
    )
    assert (found.asr, found.rate_without_trigger) == (1.0, 0.0)
    assert found.interval == wilson(40, 40)
    assert found.interval_without_trigger == wilson(0, 40)
    assert found.threshold == target.threshold
    clean = attack_success(closed_form(digits), Injection(shift), target, sampler="ddpm", steps=30, n=40)
    assert clean.asr == 0


def cases(both: int, one: int, other: int, none: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + one) + [False] * (other + none)
    return first, [True] * both + [False] * one + [True] * other + [False] * none


def test_a_paired_difference_is_the_published_example() -> None:
    """Newcombe 1998, table II: 36, 12, 2 and 0 cases give .2 [.0569, .3404]."""
    found = paired(*cases(36, 12, 2, 0))
    assert (found.value, found.n) == (pytest.approx(0.2), 50)
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))


@pytest.mark.parametrize("counts", [(5, 3, 1, 7), (0, 9, 0, 0), (4, 0, 0, 4), (10, 0, 0, 0)])
def test_a_paired_difference_turns_with_its_sides(counts: tuple[int, int, int, int]) -> None:
    first, second = cases(*counts)
    one, other = paired(first, second), paired(second, first)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert one.low < one.high


def test_a_paired_difference_needs_pairs() -> None:
    for first, second in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="the same cases twice"):
            paired(first, second)
