"""MSE and SSIM: closed forms, ranges, and the library called directly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from backdrift.metrics.fid import Inception
from backdrift.metrics.lpips import Lpips
from backdrift.metrics.mse import mse
from backdrift.metrics.ssim import ssim
from backdrift.metrics.weights import read_weights


def images(n: int, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_mse_is_that_of_images_in_zero_to_one() -> None:
    black, white, grey = (torch.full((1, 1, 4, 4), v) for v in (-1.0, 1.0, 0.0))
    assert mse(black, white[0]).tolist() == [1.0]
    assert mse(black, grey).tolist() == [0.25]
    assert mse(7 * white, white[0]).tolist() == [0.0]  # what is drawn is clamped, as a PNG would be
    x, y = images(3), images(3, seed=1)
    assert mse(x, y).tolist() == pytest.approx(((x - y) / 2).double().square().mean((1, 2, 3)).tolist())


def test_ssim_is_that_of_torchmetrics_on_the_same_range() -> None:
    x, y = images(3, 3), images(3, 3, seed=1)
    found = ssim(x, y)
    assert found.shape == (3,)
    for index in range(3):
        one = structural_similarity_index_measure(
            x[index : index + 1] / 2 + 0.5, y[index : index + 1] / 2 + 0.5, data_range=1.0
        )
        assert float(found[index]) == pytest.approx(float(one), abs=1e-5)
    assert ssim(x[:1], x[0]).tolist() == pytest.approx([1.0])


def test_ssim_of_constants_has_a_closed_form() -> None:
    x, y = torch.full((1, 1, 8, 8), -0.5), torch.full((1, 8, 8), 0.5)  # .25 and .75
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert float(ssim(x, y)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", [mse, ssim])
def test_shapes_that_do_not_match_are_refused(metric: object) -> None:
    assert callable(metric)
    for reference in (torch.zeros(1, 8, 8), torch.zeros(16, 16), torch.zeros(2, 1, 16, 16)):
        with pytest.raises(ValueError, match="against a reference"):
            metric(images(3), reference)
    with pytest.raises(ValueError, match="6x6"):
        ssim(torch.zeros(1, 1, 5, 5), torch.zeros(1, 5, 5))


@pytest.mark.parametrize("kind", [Inception, Lpips])
def test_published_weights_come_from_the_user_or_there_is_one_line(kind: type, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*\.pth"):
        kind(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"is not .*\.pth: its SHA-256 begins with [0-9a-f]{8}, not"):
        kind(tmp_path / "other.pth")


def test_weights_are_read_without_running_code(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(2)}, path)
    assert read_weights(path, "", "w.pth")["a"].tolist() == [1, 1]
    torch.save({"a": Path("x")}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(path, "", "w.pth")
    path.write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(path, "", "w.pth")
