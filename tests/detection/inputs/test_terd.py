"""TERD's input detection against the likelihoods of torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from backdrift.core.randomness import SampleGenerator, generator
from backdrift.detection.inputs.terd import GaussianRatio, Terd
from backdrift.inversion._base import Candidate
from tiny import SHAPE, tiny_model

MU = 0.5 * torch.randn(SHAPE, generator=generator(1, "mu"))
GAMMA = torch.rand(SHAPE, generator=generator(1, "gamma")) + 0.2


def noise(count: int = 6) -> Tensor:
    return SampleGenerator(0, count).normal(SHAPE)


def test_it_is_the_ratio_of_two_likelihoods() -> None:
    x, mu, gamma = noise().double(), MU.double(), GAMMA.double()
    triggered = Normal(mu, gamma).log_prob(x).flatten(1).sum(1)
    plain = Normal(torch.zeros_like(mu), 1.0).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(GaussianRatio(MU, GAMMA).scores(noise()), triggered - plain)


def test_the_published_covariance_takes_gamma_for_the_variance() -> None:
    x, mu, gamma = noise().double().flatten(1), MU.double().flatten(), GAMMA.double().flatten()
    triggered = MultivariateNormal(mu, torch.diag(gamma)).log_prob(x)
    plain = MultivariateNormal(torch.zeros_like(mu), torch.eye(len(mu), dtype=torch.float64)).log_prob(x)
    published = GaussianRatio(MU, GAMMA, published_covariance=True).scores(noise())
    torch.testing.assert_close(published, triggered - plain)


def test_with_unit_gamma_it_is_a_projection() -> None:
    x, mu = noise().double(), MU.double()
    expected = (x * mu).flatten(1).sum(1) - mu.square().sum() / 2
    torch.testing.assert_close(GaussianRatio(MU).scores(noise()), expected)
    torch.testing.assert_close(GaussianRatio(MU, torch.ones(SHAPE)).scores(noise()), expected)


def test_what_it_is_on_average() -> None:
    """-+ ||mu||^2 / 2 with a standard deviation of ||mu||."""
    x, square = noise(2000), float(MU.square().sum())
    ratio = GaussianRatio(MU)
    for starts, sign in ((x, -1), (x + MU, 1)):
        scores = ratio.scores(starts)
        assert float(scores.mean()) == pytest.approx(sign * square / 2, abs=4 * (square / 2000) ** 0.5)
        assert float(scores.std()) == pytest.approx(square**0.5, rel=0.1)
    assert float((ratio.scores(x + MU) > 0).double().mean()) > 0.95
    assert float((ratio.scores(x) > 0).double().mean()) < 0.05


def test_gamma_is_held_above_zero() -> None:
    assert GaussianRatio(MU, torch.zeros(SHAPE)).scores(noise()).isfinite().all()


def test_noise_of_another_shape_is_refused() -> None:
    for wrong in (noise()[0], noise()[:, :, :4]):
        with pytest.raises(ValueError, match="noise must be"):
            GaussianRatio(MU).scores(wrong)


def test_from_a_candidate() -> None:
    ratio = GaussianRatio.of(Candidate(MU, "sde", "x", scale=GAMMA), published_covariance=True)
    assert torch.equal(ratio.shift, MU)
    assert ratio.scale is GAMMA
    assert ratio.published_covariance


def test_a_model_is_inverted_and_the_largest_ratio_counts() -> None:
    detector = Terd(iterations=2)
    model, starts = tiny_model(blocks=1), noise()
    scores = detector.scores(model, starts, seed=3)
    assert scores.shape == (6,)
    ratios = detector.fit(model, seed=3)
    assert len(ratios) == 2
    each = [ratio.scores(starts) for ratio in ratios]
    assert torch.equal(scores, torch.maximum(*each))
    assert not torch.equal(scores, detector.scores(model, starts, seed=4))
