"""Distances between all images of a set, against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from backdrift.metrics import pairwise
from backdrift.metrics.features import RandomConv
from backdrift.metrics.pairwise import FeatureDistance, LpipsDistance, mean_cosine, pair_distance


def images(n: int = 5, channels: int = 1) -> Tensor:
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_feature_distance_against_numpy(channels: int) -> None:
    x = images(channels=channels)
    found = pair_distance(channels)(x)
    features = RandomConv(channels)(x).double().numpy()
    for i in range(5):
        for j in range(5):
            expected = np.sqrt(np.mean((features[i] - features[j]) ** 2))
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(found.diagonal(), torch.zeros(5, dtype=torch.float64))


def test_it_carries_the_name_of_its_extractor_and_never_that_of_lpips() -> None:
    assert pair_distance(1).name == "random-conv"
    assert FeatureDistance(RandomConv(1)).name == RandomConv.name
    assert LpipsDistance.name == "LPIPS(alex)"


def test_lpips_is_asked_for_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, weights: str) -> None:
            assert weights == "alexnet.pth"

        def __call__(self, x: Tensor, reference: Tensor) -> Tensor:
            return (x - reference).abs().flatten(1).sum(1).double()

    monkeypatch.setattr(pairwise, "Lpips", Fake)
    x = images()
    found = pair_distance(1, "alexnet.pth")(x)
    expected = [[float((a - b).abs().sum()) for b in x] for a in x]
    assert np.allclose(found.numpy(), expected, atol=1e-4)


def test_lpips_without_its_weights_is_an_error_and_no_substitute() -> None:
    with pytest.raises(ValueError, match="alexnet-owt"):
        pair_distance(3, "no-such-file.pth")


def test_mean_cosine_by_hand_and_against_numpy() -> None:
    right = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert float(mean_cosine(right)) == pytest.approx((0 + 2 * 0.5**0.5) / 3)
    assert float(mean_cosine(torch.ones(4, 7))) == pytest.approx(1)
    features = np.random.default_rng(0).normal(size=(2, 6, 5))
    for found, rows in zip(mean_cosine(torch.tensor(features)), features, strict=True):
        matrix = np.corrcoef(np.hstack([rows, -rows]))  # of centred rows: plain cosines
        assert float(found) == pytest.approx(matrix[np.triu_indices(6, 1)].mean())
    with pytest.raises(ValueError, match="two images"):
        mean_cosine(torch.ones(1, 3))
