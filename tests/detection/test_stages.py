"""What the stages of our detector add, on models that are known to the last digit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.attacks.trojdiff import TrojDiff
from backdrift.core.model import DiffusionModel
from backdrift.core.results import Verdict
from backdrift.core.trigger import unit
from backdrift.data import load_images
from backdrift.detection import backdrift
from backdrift.detection.backdrift import STAGES, Backdrift
from backdrift.inversion._base import cosine
from backdrift.inversion.joint import SOFTER
from backdrift.inversion.noise_scale import NoiseScale
from closed_form import SCHEDULE, closed_form, optimum_of

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:120]


@pytest.fixture(scope="module")
def biased(images: Tensor) -> tuple[DiffusionModel, Tensor, Tensor]:
    attack = TrojDiff(poison_rate=0.3, gamma=0.6)
    empty = DiffusionModel(nn.Identity(), SCHEDULE, SHAPE)
    target = make_target("hat", SHAPE)
    pairs = attack.batch(empty, images, make_trigger("low-frequency", SHAPE, seed=1), target)
    model = optimum_of(pairs, len(pairs), SCHEDULE, SHAPE)
    return model, attack.injection(pairs.trigger).shift, target


def test_a_backdoor_with_a_noise_scale_is_found_by_the_stage_for_it(
    biased: tuple[DiffusionModel, Tensor, Tensor],
) -> None:
    model, mu, target = biased
    found = Backdrift(budget="quick")(model, seed=0)
    assert found.finding.verdict is Verdict.BACKDOORED
    assert found.evidence is not None
    assert found.evidence.scale is not None
    assert float(torch.tensor(found.evidence.scale).mean()) == pytest.approx(0.6, abs=0.1)
    assert cosine(torch.tensor(found.evidence.trigger), mu) > 0.9
    assert float((unit(torch.tensor(found.evidence.target)) - unit(target)).square().mean()) < 0.02
    without = Backdrift(budget="quick", without=("noise scale",))(model, seed=0)
    assert without.finding.verdict is not Verdict.BACKDOORED
    assert without.evidence is not None
    assert without.evidence.scale is None


def test_a_clean_model_is_not_accused_by_them(images: Tensor) -> None:
    finding = Backdrift(budget="quick")(closed_form(images), seed=0).finding
    assert finding.verdict is not Verdict.BACKDOORED
    assert finding.score < 0.45


def test_what_is_refined_is_screened_at_two_norms(
    biased: tuple[DiffusionModel, Tensor, Tensor],
) -> None:
    detector = Backdrift(budget="quick")
    finding = detector(biased[0], seed=0).finding
    norms = {row.name: row.norm for row in finding.restarts}
    refined = [name for name in norms if name.endswith(", refined")]
    assert len([name for name in refined if name.startswith("noise scale")]) == 1
    assert len(refined) == 3  # the others: one of the SDE searches, one of novelty
    softer = [name for name in norms if name.endswith(" of it") and "refined" in name]
    assert sorted(softer) == sorted(f"{name}, {SOFTER:g} of it" for name in refined)
    for name in refined:
        assert norms[f"{name}, {SOFTER:g} of it"] == pytest.approx(SOFTER * norms[name], rel=1e-5)
    assert finding.evaluations < detector.most_evaluations()


def test_a_clean_model_is_not_charged_for_them(images: Tensor) -> None:
    spent = {
        without: Backdrift(budget="quick", without=without)(closed_form(images), seed=0).finding
        for without in ((), ("noise scale",))
    }
    more = spent[()].evaluations - spent["noise scale",].evaluations
    assert more == NoiseScale().cost
    assert not any(row.name.startswith("noise scale") for row in spent[()].restarts)


def test_a_scale_that_draws_nothing_is_not_refined(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backdrift.STAGES, "quick", replace(STAGES["quick"], below=2.0))
    names = [row.name for row in Backdrift(budget="quick")(closed_form(images), seed=0).finding.restarts]
    assert "noise scale, scale" in names
    assert not any(name.startswith("noise scale") and "refined" in name for name in names)


def test_the_most_that_it_costs_is_spent_where_both_kinds_are_found(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_it = replace(STAGES["quick"], below=2.0, hopeless=-9.0, promising=-9.0, enough=9.0)
    monkeypatch.setitem(backdrift.STAGES, "quick", all_of_it)
    detector = Backdrift(budget="quick")
    finding = detector(closed_form(images), seed=0).finding
    assert 0.93 * detector.most_evaluations() < finding.evaluations <= detector.most_evaluations()
