"""Frechet distance between features of two sets of images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from backdrift.metrics.bootstrap import Bootstrapped, quantiles
from backdrift.metrics.features import Extractor, Given
from backdrift.metrics.rates import Estimate

higher_is_better = False


class FrechetDistance:
    """``||m_1 - m_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))`` of means and covariances of features.

    Heusel et al., arXiv 1706.08500, equation 6, computed by torchmetrics from running sums in
    float64: memory does not grow with the number of images. The name carries the extractor; it is
    FID with the canonical network only (:mod:`backdrift.metrics.fid`).

    The reference is the clean training set, not a sample of it: only the other images are resampled.
    The estimate is biased upwards by roughly 1 / n, and every resample adds that bias once more, so
    the interval is that of the estimate at this n: the 95% range of the replicates moved to have
    their mean at the estimate. It covers what the estimate is on average at this n and against this
    reference, not the distance of infinite sets; ``tests/metrics/test_distances.py`` simulates that.
    Compare distances of the same n to the same reference only.

    Args:
        extractor: images in [-1, 1] to features.
        seed: of the bootstrap; distances of one seed that are fed batches of the same sizes have
            paired replicates (see :func:`ratio`).
        replicates: of the bootstrap. A copy costs 32 d^2 bytes for d features.
    """

    def __init__(self, extractor: Extractor, *, seed: int = 0, replicates: int = 200) -> None:
        self.extractor, self.name, self.n = extractor, extractor.distance, 0
        metric = FrechetInceptionDistance(feature=Given(extractor.num_features))
        self._metric = Bootstrapped(metric.set_dtype(torch.float64), seed=seed, replicates=replicates)

    def update(self, images: Tensor, *, real: bool) -> None:
        """Feeds images (B, C, H, W) in [-1, 1], of the reference set if ``real``."""
        feed = self._metric.fix if real else self._metric.update
        feed(self.extractor(images).double(), real=real)
        self.n += 0 if real else len(images)

    def replicates(self) -> tuple[float, Tensor]:
        """The distance, and its replicates (R,) moved so that their mean is the distance."""
        value, drawn = self._metric.compute()
        return value, drawn - drawn.mean() + value

    def compute(self) -> Estimate:
        """The distance; ``n`` counts the images that are not of the reference.

        Raises:
            RuntimeError: fewer than two images on a side.
            ValueError: too few images for an interval.
        """
        value, moved = self.replicates()
        return Estimate(value, *quantiles(moved), self.n, "bootstrap, at this n")


def ratio(distance: FrechetDistance, base: FrechetDistance) -> Estimate:
    """``distance / base`` with an interval from their replicates, paired if they share a seed.

    Infinite where the base is not positive.
    """
    value, above = distance.replicates()
    reference, below = base.replicates()
    infinite = torch.full_like(above, torch.inf)
    quotients = torch.where(below > 0, above / below, infinite)
    low, high = quantiles(quotients)
    return Estimate(
        value / reference if reference > 0 else float("inf"),
        low,
        high,
        min(distance.n, base.n),
        "bootstrap, paired",
    )
