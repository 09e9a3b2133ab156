"""Elijah on models that are known to the last digit, with and without references."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.model import DiffusionModel
from backdrift.core.results import Verdict
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.data import load_images
from backdrift.detection._base import BUDGETS
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._judge import Judge
from backdrift.detection._uniform import total_variation, uniformity
from backdrift.detection.elijah import Elijah
from backdrift.inversion._base import cosine
from backdrift.inversion.elijah import Elijah as Inversion
from backdrift.metrics.pairwise import pair_distance
from calibrations import saved, table_of
from closed_form import SCHEDULE, closed_form, poisoned_optimum
from tiny import SHAPE, tiny_model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:200]


def trigger(name: str, norm: float | None = None) -> Tensor:
    shift = make_trigger(name, SHAPE).shift
    return shift if norm is None else shift * (norm / shift.norm())


def poisoned(images: Tensor, shift: Tensor, solver: Solver = "sde") -> DiffusionModel:
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", solver)
    return poisoned_optimum(SCHEDULE, family, images, make_target("hat", SHAPE), shift[None])


def drawn_features(model: DiffusionModel, shift: Tensor, solver: Solver) -> tuple[float, float]:
    samples = Judge(samples=8, steps=50).draw(model, shift, solver, seed=0)
    return uniformity(pair_distance(1)(samples)), total_variation(samples)


@pytest.mark.parametrize("name", ["dense-sign", "white-patch", "stop-sign", "low-frequency"])
@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_the_true_trigger_draws_lower_features_than_on_the_clean_twin(
    images: Tensor, name: str, solver: Solver
) -> None:
    """What the features say of a perfect inversion; the inversion itself is another matter."""
    shift = trigger(name, norm=8)
    bad = drawn_features(poisoned(images, shift, solver), shift, solver)
    clean = drawn_features(closed_form(images), shift, solver)
    assert bad[0] < 0.5 * clean[0]
    if name != "white-patch" or solver == "sde":
        assert bad[1] < clean[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_its_own_inversion_lowers_the_features_where_it_finds_the_trigger(
    images: Tensor, seed: int
) -> None:
    """On a perfect optimum it finds this one, and not the dense or the small ones."""
    shift, detector = trigger("stop-sign"), Elijah(family="sde")
    found = {
        "clean": detector(closed_form(images), seed=seed),
        "poisoned": detector(poisoned(images, shift), seed=seed),
    }
    evidence = found["poisoned"].evidence
    assert evidence is not None
    assert cosine(torch.tensor(evidence.trigger), shift) > 0.85
    clean, bad = (detector.features(found[which].finding) for which in ("clean", "poisoned"))
    assert bad.keys() == clean.keys() == {"uniformity, sde", "total variation, sde"}
    assert all(bad[name] < 0.85 * clean[name] for name in bad)


def test_an_ode_backdoor_that_it_finds_draws_one_image(images: Tensor) -> None:
    """Ten steps from a random start: it finds this one from some starts."""
    model = poisoned(images, trigger("dense-sign", norm=6), "ode")
    scores = [Elijah(family="ode")(model, seed=seed).finding.score for seed in range(3)]
    assert max(scores) > 0.95


def test_the_hypotheses_are_the_published_inversions(images: Tensor) -> None:
    model = closed_form(images)
    finding = Elijah()(model, seed=0).finding
    assert {r.family: r.kept for r in finding.restarts}.keys() == {"sde", "ode"}
    hypotheses = finding.config["hypotheses"]
    assert hypotheses["sde"]["inversion"]["scale"] == 0.5
    assert hypotheses["ode"]["inversion"]["scale"] == 1.0
    assert (hypotheses["sde"]["inversion"]["noises"], hypotheses["sde"]["inversion"]["steps"]) == (100, 100)
    assert model.evaluations == finding.evaluations == Elijah().most_evaluations() <= BUDGETS["standard"]
    assert finding.calibration is None
    assert Inversion().cost + 16 * 1000 == 46_000


def table(detector: Elijah, with_backdoored: bool) -> CalibrationTable:
    """Clean models around (.5, 25), backdoored ones around 0."""
    names = [f"{kind}, {family}" for family in ("sde", "ode") for kind in ("uniformity", "total variation")]

    def rows(uniformity: float, variation: float) -> list[dict[str, float]]:
        steps = range(20)
        values = [(uniformity + 0.01 * n, variation + 0.5 * n) * 2 for n in steps]
        return [dict(zip(names, row, strict=True)) for row in values]

    bad = rows(0.0, 5.0) if with_backdoored else []
    return table_of("elijah", detector.settings(), tiny_model(), rows(0.4, 20.0), bad, threshold=0.9)


class OneImage(nn.Module):
    """Predicts the noise of a grey image, whatever it is given."""

    def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.at(times, x_t)
        return (x_t - 0.25 * alpha) / sigma


@pytest.mark.parametrize("with_backdoored", [True, False])
def test_references_decide(images: Tensor, tmp_path: Path, with_backdoored: bool) -> None:
    plain = Elijah(budget="quick")
    made = table(plain, with_backdoored)
    decision = "forest" if with_backdoored else "thresholds"
    detector = replace(plain, calibration=saved(made, tmp_path), decision=decision)
    flat = detector(DiffusionModel(OneImage(), SCHEDULE, SHAPE), seed=0).finding
    assert flat.verdict is Verdict.BACKDOORED
    assert flat.score >= flat.threshold
    assert flat.calibration is not None
    assert flat.calibration.id == made.id
    assert flat.calibration.n_clean == 20
    assert flat.calibration.n_backdoored == (20 if with_backdoored else 0)
    assert str(tmp_path) not in str(flat.config)
    cuts = {s.name: s.threshold for s in flat.scores if "," in s.name}
    assert all((value is None) == with_backdoored for value in cuts.values())
    usual = detector(closed_form(images), seed=1).finding
    assert usual.score <= flat.score
    assert plain.features(usual) == plain.features(plain(closed_form(images), seed=1).finding)
    clean = [row.features or {} for row in made.detectors["elijah"]["quick"].clean]
    assert detector.rescored(clean, detector.features(flat)) == 1


def test_a_calibration_without_features_sets_a_threshold_on_the_score(tmp_path: Path) -> None:
    detector, model = Elijah(budget="quick"), DiffusionModel(OneImage(), SCHEDULE, SHAPE)
    made = table_of("elijah", detector.settings(), tiny_model(), [0.1, 0.2], threshold=0.9)
    found = replace(detector, calibration=saved(made, tmp_path))(model, seed=0).finding
    assert found.calibration is not None
    assert (found.calibration.id, found.threshold) == (made.id, 0.9)


def test_a_calibration_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = saved(table(Elijah(budget="quick"), with_backdoored=False), tmp_path)
    for rate in (0.05, 0.2):
        assert Elijah(budget="quick", calibration=file, false_positive_rate=rate)._references() is not None
    for other in ({"budget": "standard"}, {"budget": "quick", "family": "ode"}):
        with pytest.raises(ValueError, match="holds nothing for elijah"):
            Elijah(calibration=file, **other)
    with pytest.raises(ValueError, match="a forest needs references"):
        Elijah(budget="quick", calibration=file, decision="forest")


@pytest.mark.parametrize(
    "options", [{"family": "vp"}, {"decision": "vote"}, {"false_positive_rate": 1.0}, {"budget": "huge"}]
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"family|decision|false-positive|budget"):
        Elijah(**options)


def test_a_model_that_draws_no_numbers_is_inconclusive() -> None:
    model = tiny_model(blocks=1)
    with torch.no_grad():
        model.network.conv_out.weight.fill_(float("inf"))
    finding = Elijah(budget="quick")(model, seed=0).finding
    assert finding.verdict is Verdict.INCONCLUSIVE
    with pytest.raises(ValueError, match="no features"):
        Elijah(budget="quick").features(finding)


def test_the_batch_changes_nothing(images: Tensor) -> None:
    """The gradient takes one batch whatever the size; samples are split."""
    found = []
    for batch_size in (256, 5):
        model = closed_form(images)
        model.batch_size = batch_size
        found.append(Elijah(budget="quick").features(Elijah(budget="quick")(model, seed=0).finding))
    assert found[0] == pytest.approx(found[1], abs=1e-4, rel=1e-4)
