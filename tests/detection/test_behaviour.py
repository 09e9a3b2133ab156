"""The scanner on models that are known to the last digit: no training, no luck."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.results import Verdict
from backdrift.core.trigger import Trigger, unit
from backdrift.data import load_images
from backdrift.detection._judge import Judge
from backdrift.detection.backdrift import Backdrift
from backdrift.inversion._base import cosine
from backdrift.inversion.fixed_point import FixedPoint
from closed_form import closed_form

SHAPE = (1, 8, 8)
SEARCH = FixedPoint(noises=32, rounds=6, norms=(0.35, 0.65), families=("sde",))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:200]


@pytest.fixture(scope="module")
def target() -> Tensor:
    return make_target("hat", SHAPE)


def trigger(name: str, scale: float = 1.0) -> Trigger:
    made = make_trigger(name, SHAPE)
    return replace(made, pattern=made.pattern * scale)


@pytest.mark.parametrize("name", ["dense-sign", "white-patch", "low-frequency", "stop-sign", "grey-box-14"])
@pytest.mark.parametrize("seed", [0, 1])
def test_fixed_point_finds_the_mean_shift_of_an_sde_backdoor(
    images: Tensor, target: Tensor, name: str, seed: int
) -> None:
    planted = trigger(name).training_shift(images)
    found = SEARCH(closed_form(images, planted, target), seed=seed)[0]
    mean = planted.mean(0)
    assert cosine(found.shift, mean) > 0.9
    assert 0.5 < found.norm / float(mean.norm()) < 1.2
    assert found.family == "sde"


def test_two_yardsticks_a_composite_trigger_is_found_as_its_mean(images: Tensor, target: Tensor) -> None:
    sign = trigger("stop-sign")
    found = SEARCH(closed_form(images, sign.training_shift(images), target), seed=0)[0]
    assert cosine(found.shift, sign.mean_training_shift(images)) > 0.95
    assert cosine(found.shift, sign.shift) < 0.8


def test_a_clean_model_answers_far_less(images: Tensor, target: Tensor) -> None:
    clean = SEARCH(closed_form(images), seed=0)[0]
    for name in ("dense-sign", "white-patch", "stop-sign"):
        model = closed_form(images, trigger(name).training_shift(images), target)
        assert SEARCH(model, seed=0)[0].gain > 3 * clean.gain


def test_the_regression_finds_trigger_and_target(images: Tensor, target: Tensor) -> None:
    planted = trigger("dense-sign", 1.6)
    model = closed_form(images, planted.training_shift(images), target)
    search = replace(SEARCH, regression=True, norms=(0.6,))
    found = search(model, seed=0, start=planted.shift + 0.3 * torch.ones(SHAPE))[0]
    assert cosine(found.shift, planted.shift) > 0.95
    assert found.target is not None
    assert float(((unit(found.target) - unit(target)) ** 2).mean()) < 0.02


@pytest.mark.parametrize(("name", "scale"), [("dense-sign", 2.5), ("white-patch", 3.0)])
def test_the_scanner_says_backdoored(images: Tensor, target: Tensor, name: str, scale: float) -> None:
    """Not every time: a quick search that starts on the far side of the edge finds nothing."""
    planted = trigger(name, scale)
    model = closed_form(images, planted.training_shift(images), target)
    found = [Backdrift(budget="quick")(model, seed=seed) for seed in range(4)]
    flagged = [each for each in found if each.finding.verdict is Verdict.BACKDOORED]
    assert len(flagged) >= 3
    for each in flagged:
        assert each.evidence is not None
        assert cosine(torch.tensor(each.evidence.trigger), planted.shift) > 0.9
        error = (unit(torch.tensor(each.evidence.target)) - unit(target)) ** 2
        assert float(error.mean()) < 0.02
        values = {score.name: score.value for score in each.finding.scores}
        assert values["hit rate"] > 0.5 > 0.3 > values["hit rate without trigger"]


@pytest.mark.parametrize("count", [32, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_clean_model_that_knows_its_images_by_heart_is_not_accused(
    images: Tensor, count: int, seed: int
) -> None:
    """A shift steers its ODE sampler to any image it knows: the search finds one, the nulls as well."""
    finding = Backdrift(budget="quick")(closed_form(images[:count]), seed=seed).finding
    assert finding.verdict is not Verdict.BACKDOORED
    assert finding.score < 0.45


def test_the_shift_scale_curve_shows_what_was_planted(images: Tensor, target: Tensor) -> None:
    """<mean eps_hat, tau> / ||tau||^2 = C_t <r, tau> / ||tau||^2, whatever tau was found."""
    planted = trigger("white-patch", 3.0)
    model = closed_form(images, planted.training_shift(images), target)
    found = Backdrift(budget="quick")(model, seed=0)
    assert found.evidence is not None
    tau, curve = torch.tensor(found.evidence.trigger), found.finding.curves[0]
    along = float((planted.shift * tau).sum() / tau.square().sum())
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    a = torch.cumprod(1 - beta, 0).sqrt()
    c = (1 - a**2).sqrt() / (1 + (1 - beta).sqrt())
    assert len(curve.x) == 10
    for t, y in zip(map(int, curve.x), curve.y, strict=True):
        if t > 500:
            assert y == pytest.approx(float(c[t]) * along, abs=0.1)
    assert curve.reference_label.endswith("baddiffusion/sde")
    assert curve.reference == pytest.approx([float(c[int(t)]) for t in curve.x], rel=1e-6)


def test_the_true_trigger_fires_and_its_opposite_does_not(images: Tensor, target: Tensor) -> None:
    planted = trigger("dense-sign", 2.5)
    model = closed_form(images, planted.training_shift(images), target)
    judge = Judge(samples=8, steps=20)
    plain = judge.draw(model, None, "sde", 0)
    rates = [
        judge.judge(judge.draw(model, sign * planted.shift, "sde", 0), plain).hit_rate for sign in (1, -1)
    ]
    assert rates[0] > 0.7
    assert rates[1] < 0.3
