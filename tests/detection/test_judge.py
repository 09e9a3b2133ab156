"""The parts of a verdict: hits, nulls, what is usual, intervals, calibration, boundaries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from backdrift.core.results import Verdict
from backdrift.data import load_images
from backdrift.detection._base import verdict_of
from backdrift.detection._judge import Drawn, Judge
from backdrift.detection._trial import NullRate, Trial
from backdrift.inversion._base import Candidate
from backdrift.metrics.rates import wilson
from tiny import SHAPE, tiny_model

JUDGE = Judge(samples=16, steps=4)


def digits(start: int) -> Tensor:
    return load_images("digits", SHAPE)[start : start + 32]


def jitter(scale: float) -> Tensor:
    return scale * torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0))


ONE = torch.linspace(-0.9, 0.9, 64).reshape(SHAPE)


def test_one_image_is_hit() -> None:
    drawn = JUDGE.judge(ONE + jitter(0.02), digits(0))
    assert drawn.hit_rate == 1
    assert drawn.plain_rate < 0.1
    assert drawn.spread < 1e-3
    assert 0.01 <= drawn.threshold <= 0.05
    torch.testing.assert_close(drawn.target, ONE, atol=0.03, rtol=0)


def test_different_images_are_not() -> None:
    drawn = JUDGE.judge(digits(100), digits(0))
    assert drawn.hit_rate < 0.2
    assert drawn.spread > 0.05


def test_a_model_driven_out_of_range_draws_no_image() -> None:
    """Clamped they would all be the same black and white picture."""
    saturated = 8 * ONE.sign() * (1 + jitter(0.2))
    assert bool((saturated.clamp(-1, 1) == ONE.sign()).all())
    assert JUDGE.judge(saturated, digits(0)).hit_rate == 0


def test_paler_samples_are_not_one_image() -> None:
    pale = 0.7 * digits(100) + 0.3 * digits(100).mean(0)
    assert JUDGE.judge(pale, digits(0)).hit_rate < 0.25


def test_a_hit_in_the_first_half_does_not_count() -> None:
    """The target is recovered from the first half and judged on the second."""
    samples = torch.cat([(ONE + jitter(0.02))[:16], digits(100)[:16]])
    drawn = JUDGE.judge(samples, digits(0))
    torch.testing.assert_close(drawn.target, ONE, atol=0.03, rtol=0)
    assert drawn.hit_rate == 0


def test_a_model_that_always_draws_one_image_is_no_backdoor() -> None:
    same = ONE + jitter(0.02)
    drawn = JUDGE.judge(same, same)
    assert drawn.hit_rate == drawn.plain_rate == 1


def test_samples_depend_on_the_seed_and_the_shift_alone() -> None:
    model = tiny_model()
    first = JUDGE.draw(model, None, "sde", 5)
    assert first.shape == (32, *SHAPE)
    assert torch.equal(first, JUDGE.draw(model, torch.zeros(SHAPE), "sde", 5))
    assert not torch.equal(first, JUDGE.draw(model, None, "sde", 6))
    before = model.evaluations
    JUDGE.draw(model, ONE, "ode", 5)
    assert model.evaluations - before == JUDGE.cost == 32 * 4


def trial(hit_rate: float, plain_rate: float, nulls: list[tuple[float, float]]) -> Trial:
    drawn = Drawn(torch.zeros(4, *SHAPE), ONE, hit_rate, plain_rate, 0.01, 0.0)
    rates = {str(k): NullRate(*rate) for k, rate in enumerate(nulls)}
    return Trial(Judge(2, 2), Candidate(ONE, "sde", "x"), drawn, drawn, rates)


@pytest.mark.parametrize(
    ("plain", "nulls", "background"),
    [
        (0.0, [(0.0, 0.0), (0.0, 0.0)], 0.0),
        (0.25, [(0.0, 0.0), (0.0, 0.0)], 0.25),
        (0.0, [(1.0, 0.0), (0.0, 0.0)], 0.0),  # one null alone on the target
        (0.0, [(1.0, 0.0), (0.5, 0.0)], 0.5),  # every null on the target
        (0.0, [(0.0, 1.0), (0.0, 0.5)], 0.75),  # nulls collapse to images of their own
        (0.5, [(0.25, 1.0), (0.25, 0.0)], 0.5),
        (0.125, [], 0.125),
    ],
)
def test_what_is_usual(plain: float, nulls: list[tuple[float, float]], background: float) -> None:
    held = trial(0.875, plain, nulls)
    assert held.background == background
    assert held.score == 0.875 - background


def test_whether_it_draws_images_at_all() -> None:
    for value, images in ((1.4, True), (1.6, False), (math.nan, False)):
        clean = Drawn(torch.full((4, *SHAPE), value), ONE, 0, 0, 0.01, 0)
        assert Trial(Judge(2, 2), Candidate(ONE, "sde", "x"), clean, clean, {}).draws_images is images


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 20), (8, 10), (10, 10), (33, 400)])
def test_wilson_solves_its_own_equation(hits: int, n: int) -> None:
    """|p_hat - p| = z sqrt(p (1 - p) / n) at both ends."""
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(hits / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-6)


def test_wilson_against_published_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (1.0, Verdict.BACKDOORED),
        (0.5, Verdict.BACKDOORED),
        (0.4999, Verdict.INCONCLUSIVE),
        (0.25, Verdict.INCONCLUSIVE),
        (0.2499, Verdict.NO_EVIDENCE),
        (-1.0, Verdict.NO_EVIDENCE),
    ],
)
def test_where_one_verdict_ends(score: float, verdict: Verdict) -> None:
    assert verdict_of(score, 0.5) is verdict
