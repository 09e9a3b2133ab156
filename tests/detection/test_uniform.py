"""Elijah's features: by hand, by brute force, against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from backdrift.detection._uniform import total_variation, uniformity


def brute_force(distances: list[list[float]]) -> float:
    """Drop four at either end of every row, then of the means of what is left."""
    means = []
    for row in distances:
        kept = sorted(row)[4:-4]
        means.append(sum(kept) / len(kept))
    kept = sorted(means)[4:-4]
    return sum(kept) / len(kept)


def test_nine_points_by_hand() -> None:
    """|i - j| on 0..8: the middle distance of row i is its fifth smallest, and of those the fifth."""
    places = torch.arange(9.0)
    distances = (places[:, None] - places).abs()
    middles = [4, 3, 2, 2, 2, 2, 2, 3, 4]  # 0: 0 1 2 3 [4] 5 6 7 8; 2: 0 1 1 2 [2] 3 4 5 6
    for row, middle in zip(distances, middles, strict=True):
        assert float(row.sort().values[4]) == middle
    assert sorted(middles)[4] == 2
    assert uniformity(distances) == 2


@pytest.mark.parametrize("count", [9, 10, 16, 33])
@pytest.mark.parametrize("seed", range(3))
def test_against_brute_force(count: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(count, 5))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    found = uniformity(torch.tensor(distances))
    assert found == pytest.approx(brute_force(distances.tolist()), abs=1e-12)
    order = np.random.default_rng(seed + 9).permutation(count)
    assert uniformity(torch.tensor(distances[order][:, order])) == pytest.approx(found, abs=1e-12)


def test_one_image_scores_zero_and_four_outliers_change_nothing() -> None:
    assert uniformity(torch.zeros(16, 16)) == 0
    points = torch.zeros(16, 1)
    points[:4] = 100.0
    assert uniformity((points - points.T).abs()) == 0


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (0, 0), (16, 9), (9,)])
def test_too_few_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 9 images"):
        uniformity(torch.zeros(shape))


def images(channels: int) -> Tensor:
    return torch.rand(5, channels, 7, 9, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2


@pytest.mark.parametrize("channels", [1, 3])
def test_total_variation_against_torchmetrics(channels: int) -> None:
    from torchmetrics.functional.image import total_variation as published

    x = images(channels)
    expected = published((x / 2 + 0.5).clamp(0, 1), reduction="mean")
    assert total_variation(x) == pytest.approx(float(expected), rel=1e-5)


def test_total_variation_by_formula() -> None:
    """A bright square of three pixels in a corner has two edges of three; stripes are all edges."""
    square = torch.full((1, 1, 8, 8), -1.0)
    assert total_variation(square) == 0
    square[..., :3, :3] = 1
    assert total_variation(square) == 6
    stripes = torch.ones(2, 1, 8, 8)
    stripes[..., ::2] = -1
    assert total_variation(stripes) == 7 * 8
    assert total_variation(torch.cat([square, stripes])) == pytest.approx((6 + 2 * 56) / 3)
    assert total_variation(5 * stripes) == 7 * 8
