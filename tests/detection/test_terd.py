"""TERD's features and rule by hand, and what a calibration makes of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.core.randomness import generator
from backdrift.core.results import Verdict
from backdrift.core.shift import ShiftFamily
from backdrift.data import load_images
from backdrift.detection._base import BUDGETS
from backdrift.detection._calibration import settings_hash
from backdrift.detection._judge import Judge
from backdrift.detection.terd import THRESHOLD, Terd, _alone, kl_features, three_sigma
from backdrift.inversion._base import Candidate
from backdrift.inversion.terd import Terd as Inversion
from calibrations import saved, table_of
from closed_form import SCHEDULE, poisoned_optimum
from tiny import SHAPE, tiny_model

PUBLISHED_SHAPE = (3, 32, 32)
MU = 0.8 * torch.randn(SHAPE, generator=generator(3, "sign")).sign()


def test_the_features_are_those_of_the_divergence() -> None:
    stream = generator(0, "features")
    mu, gamma = torch.randn(SHAPE, generator=stream), torch.rand(SHAPE, generator=stream) + 0.1
    divergence = kl_divergence(Normal(mu.double(), gamma.double()), Normal(0.0, 1.0))
    mean, variance = kl_features(mu, gamma)
    assert mean == pytest.approx(float(divergence.mean()), rel=1e-9)
    assert variance == pytest.approx(float(((divergence - divergence.mean()) ** 2).mean()), rel=1e-9)


def test_reference_points() -> None:
    """The 14-pixel box of BadDiffusion at 32 pixels; plain noise; gamma .6 on a trigger of known values."""
    assert kl_features(make_trigger("grey-box-14", PUBLISHED_SHAPE).shift) == pytest.approx(
        (0.404, 0.0387), abs=5e-4
    )
    assert kl_features(torch.zeros(SHAPE), torch.ones(SHAPE)) == (0, 0)
    half = torch.full(SHAPE, 0.4)
    half[..., :4] = 0
    mean, variance = kl_features(half, torch.full(SHAPE, 0.6))
    assert mean == pytest.approx(-math.log(0.6) - 0.32 + 0.04, rel=1e-6)
    assert variance == pytest.approx(0.04**2, rel=1e-5)


def test_gamma_is_held_above_zero() -> None:
    mean, variance = kl_features(torch.zeros(SHAPE), torch.zeros(SHAPE))
    assert mean == pytest.approx(-math.log(1e-3) - 0.5, abs=1e-5)
    assert variance == pytest.approx(0, abs=1e-12)


CLEAN = [{"M": m, "V": v} for m, v in ((1.0, 0.1), (2.0, 0.2), (3.0, 0.3))]
"""Means 2 and .2, standard deviations 1 and .1."""


@pytest.mark.parametrize(
    ("mean", "variance", "deviations", "score", "flagged"),
    [
        (2.0, 0.2, (0, 0), 0.0, False),
        (0.0, 0.0, (-2, -2), 0.0, False),
        (3.0, 0.2, (1, 0), 0.25, False),
        (4.9, 0.2, (2.9, 0), 2.9 / 5.9, False),
        (5.1, 0.2, (3.1, 0), 3.1 / 6.1, True),
        (2.0, 0.8, (0, 6), 2 / 3, True),
        (-9.0, 0.8, (-11, 6), 2 / 3, True),
    ],
)
def test_three_sigma(
    mean: float, variance: float, deviations: tuple[float, float], score: float, flagged: bool
) -> None:
    rule = three_sigma(CLEAN, {"M": mean, "V": variance})
    assert (rule.deviations["M"], rule.deviations["V"]) == pytest.approx(deviations)
    assert rule.limits == pytest.approx({"M": 5.0, "V": 0.5})
    assert rule.score == pytest.approx(score)
    assert rule.flagged is flagged


def test_clean_models_that_are_all_alike() -> None:
    alike = [{"M": 1.0}, {"M": 1.0}]
    found = [three_sigma(alike, {"M": m}) for m in (0.9, 1.0, 1.1)]
    assert [rule.deviations["M"] for rule in found] == [-math.inf, 0, math.inf]
    assert [rule.score for rule in found] == [0, 0, 1]


def test_the_rule_needs_a_deviation_and_the_same_features() -> None:
    with pytest.raises(ValueError, match="at least 2 clean models, not 1"):
        three_sigma(CLEAN[:1], CLEAN[0])
    for features in ({"M": 1.0}, {}):
        with pytest.raises(ValueError, match="same features"):
            three_sigma(CLEAN, features)


def test_the_score_alone_rises_with_each_feature() -> None:
    assert _alone({"M": 0.0, "V": 0.0}) == 0
    assert _alone({"M": 0.404, "V": 0.0387}) == pytest.approx(1 - math.exp(-0.404))
    assert (
        0 < _alone({"M": 0.1, "V": 0.04}) < _alone({"M": 0.1, "V": 0.09}) < _alone({"M": 9.0, "V": 0}) < 1
    )


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_published_length_costs_more_than_any_budget(budget: str) -> None:
    assert Terd(budget, published=True).most_evaluations() > 1_920_000 > BUDGETS["deep"]
    assert settings_hash(Terd(budget).settings()) != settings_hash(Terd(budget, published=True).settings())
    assert Terd(budget).most_evaluations() > 0.85 * BUDGETS[budget]


def test_a_calibration_decides_and_none_does_not(tmp_path: Path) -> None:
    detector, model = Terd("quick"), tiny_model(blocks=1)
    alone = detector(model, seed=0).finding
    features = detector.features(alone)
    assert set(features) == {"M", "V", "M, learned gamma", "V, learned gamma"}
    assert alone.verdict is Verdict.INCONCLUSIVE
    assert alone.calibration is None
    assert alone.score == pytest.approx(_alone(features))
    for below, verdict in ((4.0, Verdict.BACKDOORED), (2.0, Verdict.NO_EVIDENCE)):
        clean = [{n: v - below + d for n, v in features.items()} for d in (-1.0, 0.0, 1.0)]
        file = saved(table_of("terd", detector.settings(), model, clean), tmp_path)
        finding = Terd("quick", calibration=file)(model, seed=0).finding
        assert finding.verdict is verdict
        assert finding.score == pytest.approx(below / (below + 3))
        assert finding.threshold == THRESHOLD
        assert f"{below:.1f} standard deviations" in finding.reason
        assert finding.calibration is not None
        shown = {s.name: s for s in finding.scores}
        assert shown["M"].threshold == pytest.approx(features["M"] - below + 3)
        assert detector.rescored(clean, features) == pytest.approx(finding.score)


def test_evidence_carries_the_gamma_of_the_kept_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = Candidate(MU, "sde", "x", history=(1.0,))
    learned = Candidate(MU, "sde", "y", scale=torch.full(SHAPE, 0.6), history=(1.0,))
    for found in ((unit, learned), (learned, unit)):
        monkeypatch.setattr(Inversion, "__call__", lambda *_, found=found, **__: found)
        detection = Terd("quick")(tiny_model(blocks=1), seed=0)
        has = found[0] is learned
        assert detection.evidence is not None
        assert (detection.evidence.scale is not None) is has
        assert detection.evidence.sampler.startswith("biased ddpm" if has else "ddpm")
        assert detection.finding.curves[0].reference_label.endswith("biased" if has else "sde")
        assert detection.finding.restarts[0].kept


def test_the_judge_draws_through_the_sampler_of_the_attack() -> None:
    target, images = make_target("hat", SHAPE), load_images("digits", SHAPE)[:60]
    model = poisoned_optimum(SCHEDULE, ShiftFamily.biased(SCHEDULE, 0.6), images, target, MU[None])
    judge, gamma = Judge(samples=8, steps=20), torch.full(SHAPE, 0.6)
    plain = judge.draw(model, None, "sde", 0)
    hits = judge.judge(judge.draw(model, MU, "sde", 0, gamma), plain)
    assert hits.hit_rate == 1
    assert float((hits.target - target).square().mean()) < 0.02
    assert judge.judge(judge.draw(model, -MU, "sde", 0, gamma), plain).hit_rate < 0.5
    ones = judge.draw(model, torch.zeros(SHAPE), "sde", 0, torch.ones(SHAPE))
    torch.testing.assert_close(ones, plain)
