"""FD and KD against closed forms; intervals that cover; memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from backdrift.data import load_images
from backdrift.metrics.fd import FrechetDistance, ratio
from backdrift.metrics.features import RandomConv
from backdrift.metrics.kd import KernelDistance


class Pixels:
    """The pixels themselves: the closed forms are those of the images."""

    name = "pixels"
    distance = "FD(pixels)"

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def __call__(self, images: Tensor, /) -> Tensor:
        return images.flatten(1)


def normal(n: int, seed: int, d: int = 4) -> Tensor:
    return torch.randn(n, 1, d, 1, generator=torch.Generator().manual_seed(seed))


def fed(metric: FrechetDistance | KernelDistance, real: Tensor, fake: Tensor, batch: int = 100) -> None:
    for start in range(0, max(len(real), len(fake)), batch):
        for images, side in ((real, True), (fake, False)):
            if start < len(images):
                metric.update(images[start : start + batch], real=side)


def test_frechet_distance_of_gaussians_with_known_moments() -> None:
    """|m|^2 + sum (s_1 - s_2)^2 for covariances that commute."""
    spread, mean = torch.tensor([1.0, 2.0, 0.5, 1.0]), torch.tensor([0.5, 0, 0, -1.0])
    fake = normal(20_000, 1) * spread[:, None] + mean[:, None]
    fd = FrechetDistance(Pixels(4), replicates=30)
    fed(fd, normal(20_000, 0), fake, batch=5_000)
    found = fd.compute()
    expected = float(mean.square().sum() + (spread - 1).square().sum())
    assert found.value == pytest.approx(expected, rel=0.03)
    assert found.low < expected < found.high
    assert (found.n, fd.name) == (20_000, "FD(pixels)")


def test_frechet_distance_from_its_own_moments() -> None:
    """With equal covariances it is the squared distance of the means, to rounding."""
    real = normal(200, 0)
    fd = FrechetDistance(Pixels(4), replicates=2)
    fed(fd, real, real + 2)
    assert fd.compute().value == pytest.approx(4 * 2.0**2, abs=1e-6)
    same = FrechetDistance(Pixels(4), replicates=2)
    fed(same, real, real)
    assert same.compute().value == pytest.approx(0, abs=1e-6)


def test_the_value_does_not_depend_on_the_batches() -> None:
    real, fake = normal(230, 0), normal(230, 1) * 1.5
    for make in (lambda: FrechetDistance(Pixels(4), replicates=2), lambda: KernelDistance(Pixels(4))):
        values = []
        for batch in (230, 64, 7):
            metric = make()
            fed(metric, real, fake, batch)
            values.append(metric.compute().value)
        assert values == pytest.approx([values[0]] * 3, abs=1e-9)


def test_kernel_distance_is_the_unbiased_squared_mmd_of_blocks() -> None:
    real, fake = normal(100, 0), normal(100, 1) + 1

    def mmd(x: Tensor, y: Tensor) -> float:
        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return (a @ b.T / 4 + 1) ** 3

        m, x, y = len(x), x.flatten(1).double(), y.flatten(1).double()
        off = 1 - torch.eye(m, dtype=torch.float64)
        inside = (kernel(x, x) * off + kernel(y, y) * off).sum() / (m * (m - 1))
        return float(inside - 2 * kernel(x, y).mean())

    kd = KernelDistance(Pixels(4), block=50)
    fed(kd, real, fake)
    blocks = [mmd(real[i : i + 50], fake[i : i + 50]) for i in (0, 50)]
    found = kd.compute()
    assert found.value == pytest.approx(sum(blocks) / 2)
    assert min(blocks) == pytest.approx(found.low)
    assert max(blocks) == pytest.approx(found.high)
    assert found.n == 100


def test_kernel_distance_of_equal_distributions_is_zero_within_its_interval() -> None:
    kd = KernelDistance(Pixels(4))
    fed(kd, normal(2_000, 0), normal(2_000, 1))
    found = kd.compute()
    assert found.low < 0 < found.high
    identical = KernelDistance(Pixels(4), block=50)
    fed(identical, normal(100, 0), normal(100, 0))
    assert identical.compute().value <= 0  # unbiased: the cross term holds the diagonal, the others not


def test_same_seed_same_interval() -> None:
    real, fake = normal(100, 0), normal(100, 1)
    for make in (
        lambda seed: FrechetDistance(Pixels(4), seed=seed, replicates=20),
        lambda seed: KernelDistance(Pixels(4), seed=seed, block=10),
    ):
        found = []
        for seed in (0, 0, 1):
            metric = make(seed)
            state = torch.random.get_rng_state()
            fed(metric, real, fake)
            found.append(metric.compute())
            assert torch.equal(state, torch.random.get_rng_state())
        assert found[0] == found[1]
        assert found[0].value == found[2].value
        assert found[0].high != found[2].high


def test_the_ratio_of_paired_distances() -> None:
    real = normal(300, 0)
    made = []
    for shift in (2.0, 1.0):
        fd = FrechetDistance(Pixels(4), seed=3, replicates=60)
        fed(fd, real, normal(300, 1) + shift)
        made.append(fd)
    found = ratio(*made)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(4, rel=0.2)
    itself = ratio(made[0], made[0])
    assert (itself.value, itself.low, itself.high) == pytest.approx((1, 1, 1))


def test_the_interval_covers_the_estimate_against_this_reference() -> None:
    """The truth is the mean of 50 sets; 50 replicates cover it somewhat less often than 95%."""
    real = normal(40, 0)
    found = []
    for seed in range(50):
        fd = FrechetDistance(Pixels(4), seed=seed, replicates=50)
        fed(fd, real, normal(200, 1 + seed) * 1.3 + 0.5, batch=200)
        found.append(fd.compute())
    truth = sum(each.value for each in found) / len(found)
    covered = sum(each.low <= truth <= each.high for each in found)
    assert 39 <= covered <= 49


@pytest.mark.parametrize(
    "make", [lambda: FrechetDistance(RandomConv(1), replicates=5), lambda: KernelDistance(RandomConv(1))]
)
def test_memory_does_not_grow_with_the_number_of_images(
    make: Callable[[], FrechetDistance | KernelDistance],
) -> None:
    """Counts the bytes of every tensor that the metric keeps."""

    def held(metric: object, seen: set[int]) -> int:
        if id(metric) in seen:
            return 0
        seen.add(id(metric))
        if isinstance(metric, Tensor):
            return metric.untyped_storage().nbytes()
        inner = metric if isinstance(metric, list | tuple) else getattr(metric, "__dict__", {}).values()
        inner = metric.values() if isinstance(metric, dict) else inner
        return sum(held(each, seen) for each in inner)

    sizes = []
    for batches in (2, 20):
        metric = make()
        for number in range(batches):
            for side in (True, False):
                metric.update(
                    torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(number)), real=side
                )
        sizes.append(held(metric, set()))
    assert sizes[1] <= sizes[0] + 2 * 64 * 64 * 8  # KD: what waits for a counterpart, less than a block


def test_the_shipped_features_tell_damaged_digits_from_digits() -> None:
    digits = load_images("digits", (1, 16, 16))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    real, fake = digits[order[:300]], digits[order[300:600]]
    noise = torch.randn(fake.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for images in (fake, fake + 0.2 * noise, fake + 0.5 * noise, fake[:10].repeat(30, 1, 1, 1)):
        fd = FrechetDistance(RandomConv(1), replicates=20)
        fed(fd, real, images)
        found.append(fd.compute())
    clean, little, much, collapsed = found
    assert clean.high < little.low < little.high < much.low
    assert clean.high < collapsed.low


def test_the_shipped_features_are_the_same_everywhere() -> None:
    images = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    found = RandomConv(3)(images)
    assert found.shape == (1, RandomConv.num_features)
    assert torch.equal(found, RandomConv(3)(images))
    torch.manual_seed(5)
    assert torch.equal(found, RandomConv(3)(images))
    assert RandomConv(1).distance == "FD(random-conv)"


def test_too_few_images() -> None:
    fd = FrechetDistance(Pixels(4), replicates=2)
    fed(fd, normal(5, 0), normal(5, 1))
    with pytest.raises(ValueError, match="at least 20 samples"):
        fd.compute()
    kd = KernelDistance(Pixels(4), block=50)
    fed(kd, normal(99, 0), normal(300, 1))
    assert not kd.ready
    with pytest.raises(ValueError, match="two blocks of 50"):
        kd.compute()
    with pytest.raises(ValueError, match="at least 2"):
        KernelDistance(Pixels(4), block=1)
