"""UFID on models that are known to the last digit: no training, no luck."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.data import load_images
from backdrift.detection.inputs._base import clean_threshold
from backdrift.detection.inputs.ufid import Ufid
from backdrift.io.errors import CheckpointError
from backdrift.metrics.features import RandomConv
from backdrift.metrics.rates import auroc, tpr_at_fpr
from closed_form import SCHEDULE, closed_form, poisoned_optimum
from tiny import SHAPE, tiny_model

SAMPLER = {"sde": "ddpm", "ode": "ddim"}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:200]


def starts(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def trigger(name: str, norm: float = 6.0) -> Tensor:
    shift = make_trigger(name, SHAPE).shift
    return shift * (norm / shift.norm())


def poisoned(images: Tensor, shift: Tensor, solver: Solver) -> DiffusionModel:
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", solver)
    return poisoned_optimum(SCHEDULE, family, images, make_target("hat", SHAPE), shift[None])


@pytest.mark.parametrize("name", ["dense-sign", "white-patch", "low-frequency"])
@pytest.mark.parametrize("perturbation", ["variance-preserving", "additive"])
def test_triggered_starts_score_above_clean_ones(images: Tensor, name: str, perturbation: str) -> None:
    shift = trigger(name, norm=8)
    model = poisoned(images, shift, "sde")
    detector = Ufid(perturbation=perturbation)
    clean = detector.scores(model, starts(20), seed=0).tolist()
    bad = detector.scores(model, starts(20, 2) + shift, seed=0).tolist()
    found = auroc(clean, bad)
    assert found.value == pytest.approx(roc_auc_score([0] * 20 + [1] * 20, clean + bad))
    assert found.value > 0.95
    assert tpr_at_fpr(clean, bad, 0.05).value > 0.8


@pytest.mark.parametrize("name", ["dense-sign", "white-patch"])
def test_an_ode_backdoor_shows_under_an_ode_sampler_and_under_no_other(images: Tensor, name: str) -> None:
    """Copies of a clean start stay alike there, as nothing fresh is drawn: the gap is smaller."""
    shift, found = trigger(name), {}
    model = poisoned(images, shift, "ode")
    for solver, sampler in SAMPLER.items():
        detector = Ufid(sampler=sampler, perturbations=8)
        clean = detector.scores(model, starts(20), seed=0).tolist()
        bad = detector.scores(model, starts(20, 2) + shift, seed=0).tolist()
        found[solver] = auroc(clean, bad).value
    assert found["ode"] > 0.85
    assert found["sde"] < 0.7


def test_a_clean_model_answers_a_trigger_like_any_start(images: Tensor) -> None:
    model, detector = closed_form(images), Ufid()
    clean = detector.scores(model, starts(20), seed=0).tolist()
    shifted = detector.scores(model, starts(20, 2) + trigger("dense-sign"), seed=0).tolist()
    assert auroc(clean, shifted).low < 0.5 < auroc(clean, shifted).high


def test_a_threshold_from_clean_starts_flags_triggered_ones(images: Tensor) -> None:
    shift = trigger("dense-sign")
    model = poisoned(images, shift, "sde")
    threshold = clean_threshold(Ufid(), model, n=40, false_positive_rate=0.05, seed=7)
    assert float((Ufid().scores(model, starts(20, 2) + shift, seed=0) > threshold).double().mean()) > 0.9
    assert float((Ufid().scores(model, starts(40), seed=0) > threshold).double().mean()) < 0.2


def test_the_perturbed_copies_by_formula() -> None:
    x, z = starts(3), starts(6, 5).reshape(3, 2, *SHAPE)
    for s in (0.3, 0.6):
        found = Ufid(strength=s, perturbations=2).perturbed(x, z)
        assert torch.equal(found[:, 0], x)
        assert torch.allclose(found[:, 1:], math.sqrt(1 - s * s) * x[:, None] + s * z)
    assert torch.allclose(Ufid(strength=1, perturbation="additive").perturbed(x, z)[:, 1:], x[:, None] + z)


class Memory(nn.Module):
    """Predicts the noise of the one image that it knows."""

    def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = NoiseSchedule.linear(100).at(times, x_t)
        return (x_t - alpha * torch.full(SHAPE, 0.25)) / sigma


def test_one_image_for_everything_scores_one() -> None:
    model = DiffusionModel(Memory(), NoiseSchedule.linear(100), SHAPE)
    assert torch.allclose(Ufid(steps=5).scores(model, starts(4), seed=0), torch.ones(4).double())


def test_the_score_by_brute_force() -> None:
    """A network that predicts no noise only rescales a start: the copies are the images."""

    class Silent(nn.Module):
        def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
            return torch.zeros_like(x_t)

    schedule = NoiseSchedule.linear(100)
    model = DiffusionModel(Silent(), schedule, SHAPE)
    seen: list[Tensor] = []
    model.decode = lambda images: seen.append(images) or images
    found = Ufid(sampler="ddim", steps=5, perturbations=3).scores(model, starts(2), seed=0)
    (drawn,) = seen
    assert torch.allclose(drawn[::4] * float(schedule.alpha[-1]), starts(2), atol=1e-5)
    features = nn.functional.normalize(RandomConv(1)(drawn).double()).reshape(2, 4, -1)
    for score, rows in zip(found, features, strict=True):
        pairs = [float(rows[i] @ rows[j]) for i in range(4) for j in range(i)]
        assert float(score) == pytest.approx(sum(pairs) / 6, abs=1e-9)


@pytest.mark.parametrize("sampler", ["heun", "pndm", "dpm-solver++"])
def test_the_cost_of_samplers_that_call_twice(sampler: str) -> None:
    model, detector = tiny_model(blocks=1), Ufid(sampler=sampler, steps=5, perturbations=2)
    detector.scores(model, starts(2), seed=0)
    assert model.evaluations == detector.cost(2)


@pytest.mark.parametrize(
    "options",
    [
        {"perturbations": 0},
        {"steps": 0},
        {"strength": 0.0},
        {"strength": 1.0},
        {"strength": -1.0, "perturbation": "additive"},
        {"sampler": "euler"},
        {"perturbation": "none"},
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"ufid|strength|sampler|perturbation"):
        Ufid(**options)


def test_numbers_that_are_not_finite_are_no_score() -> None:
    model = tiny_model(blocks=1)
    with torch.no_grad():
        model.network.conv_out.weight.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="finite"):
        Ufid(steps=2).scores(model, starts(2), seed=0)
