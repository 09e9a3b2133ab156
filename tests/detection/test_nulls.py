"""Shifts that no attacker chose, and what they prove."""

from __future__ import annotations

import pytest
import torch

from backdrift.data import load_images
from backdrift.detection._judge import Judge, distance
from backdrift.detection._nulls import AIMED, NULLS, null_shift
from backdrift.detection._trial import Trial
from backdrift.inversion._base import Candidate
from closed_form import closed_form

SHAPES = [(1, 8, 8), (3, 16, 16)]


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NULLS)
def test_nulls_have_the_norm_and_nothing_of_the_direction(name: str, shape: tuple[int, int, int]) -> None:
    shift, own = noise(*shape) * 0.7 - 0.5, noise(5, *shape, seed=4)
    null = null_shift(name, shift, 1, own)
    assert null.shape == shape
    assert float(null.norm()) == pytest.approx(float(shift.norm()), rel=1e-5)
    if name not in AIMED:
        along = float((null * shift).sum() / shift.norm() ** 2)
        assert along == pytest.approx(-1 if name == "opposite" else 0, abs=1e-5)
    torch.manual_seed(9)
    assert torch.equal(null, null_shift(name, shift, 1, own))
    if name in ("phase-randomised", "low-frequency"):
        assert not torch.allclose(null, null_shift(name, shift, 2, own), atol=0.01)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 7, 7), (3, 16, 16)])
def test_the_null_of_a_constant_shift_is_no_rounding_noise(shape: tuple[int, int, int]) -> None:
    shift = torch.full(shape, -0.9)
    null = null_shift("constant", shift, 0, noise(2, *shape))
    assert float(null.norm()) == pytest.approx(float(shift.norm()), rel=1e-5)
    assert abs(float((null * shift).sum())) < 1e-4
    assert len(null[0].unique()) <= 3


def test_the_aimed_ones_point_from_the_mean_to_an_image() -> None:
    own = noise(4, 1, 8, 8).clamp(-1, 1)
    for number, name in enumerate(AIMED):
        null = null_shift(name, torch.ones(1, 8, 8), 0, own)
        aim = own[number] - own.mean(0)
        torch.testing.assert_close(null / null.norm(), aim / aim.norm())


def test_an_unknown_null_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown null 'sideways'"):
        null_shift("sideways", torch.ones(1, 8, 8), 0, torch.ones(2, 1, 8, 8))


def test_a_model_that_knows_few_images_by_heart_follows_any_shift_that_is_aimed() -> None:
    """The shift of an ODE start stays on the way, so the nearest image wins: no backdoor needed."""
    images = load_images("digits", (1, 8, 8))[:32]
    model, judge = closed_form(images), Judge(samples=10, steps=20)
    steered = 4.0 * (images[3] - images.mean(0)) / (images[3] - images.mean(0)).norm()
    trial = Trial.hold(model, judge, Candidate(steered, "ode", "aimed"), NULLS, 0)
    assert float(distance(trial.drawn.target[None], images[3])) < 0.01
    assert trial.drawn.hit_rate >= 0.5
    assert min(trial.nulls[name].elsewhere for name in AIMED) >= 0.5
    assert max(rate.elsewhere for name, rate in trial.nulls.items() if name not in AIMED) <= 0.3
    assert trial.score < 0.25
