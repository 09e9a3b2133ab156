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
from backdrift.inversion.noise_scale import NoiseScale
from closed_form import SCHEDULE, closed_form, optimum_of

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", SHAPE)[:120]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """``deep`` has what ``quick`` has, and the stages that deep alone has."""
    stages = replace(STAGES["quick"], scaled=NoiseScale(), softer=STAGES["deep"].softer)
    monkeypatch.setitem(backdrift.STAGES, "deep", stages)


@pytest.fixture(scope="module")
def biased(images: Tensor) -> tuple[DiffusionModel, Tensor, Tensor]:
    attack = TrojDiff(poison_rate=0.3, gamma=0.6)
    empty = DiffusionModel(nn.Identity(), SCHEDULE, SHAPE)
    target = make_target("hat", SHAPE)
    pairs = attack.batch(empty, images, make_trigger("low-frequency", SHAPE, seed=1), target)
    model = optimum_of(pairs, len(pairs), SCHEDULE, SHAPE)
    return model, attack.injection(pairs.trigger).shift, target


@pytest.mark.usefixtures("small")
def test_a_backdoor_with_a_noise_scale_is_found_by_the_stage_for_it(
    biased: tuple[DiffusionModel, Tensor, Tensor],
) -> None:
    model, mu, target = biased
    found = Backdrift(budget="deep")(model, seed=0)
    assert found.finding.verdict is Verdict.BACKDOORED
    assert found.evidence is not None
    assert found.evidence.scale is not None
    assert float(torch.tensor(found.evidence.scale).mean()) == pytest.approx(0.6, abs=0.1)
    assert cosine(torch.tensor(found.evidence.trigger), mu) > 0.9
    assert float((unit(torch.tensor(found.evidence.target)) - unit(target)).square().mean()) < 0.02
    without = Backdrift(budget="deep", without=("noise scale",))(model, seed=0)
    assert without.finding.verdict is not Verdict.BACKDOORED
    assert without.evidence is not None
    assert without.evidence.scale is None


@pytest.mark.usefixtures("small")
def test_a_clean_model_is_not_accused_by_them(images: Tensor) -> None:
    finding = Backdrift(budget="deep")(closed_form(images), seed=0).finding
    assert finding.verdict is not Verdict.BACKDOORED
    assert finding.score < 0.45


@pytest.mark.usefixtures("small")
def test_every_refined_trigger_is_screened_at_both_norms(images: Tensor) -> None:
    model = closed_form(images)
    detector = Backdrift(budget="deep")
    finding = detector(model, seed=0).finding
    norms = {row.name: row.norm for row in finding.restarts}
    refined = [name for name in norms if name.endswith(", refined")]
    assert len(refined) == 3  # of an ODE candidate and of two with a noise scale
    for name in refined:
        assert norms[f"{name}, 0.75 of it"] == pytest.approx(0.75 * norms[name], rel=1e-5)
    assert 0.8 * detector.most_evaluations() < finding.evaluations <= detector.most_evaluations()
