"""How sure a metric is that is fed batch by batch: the Poisson bootstrap."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.wrappers import BootStrapper

from backdrift.core.randomness import derive_seed
from backdrift.metrics.rates import Estimate

FEWEST = 20
"""Below this many samples a resample may be empty, and an interval means little."""


def quantiles(values: Tensor) -> tuple[float, float]:
    """2.5% and 97.5% quantile of replicates (R,); NaN if there is none or one is NaN."""
    if len(values) == 0:
        return math.nan, math.nan
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


class Bootstrapped:
    """A torchmetrics metric beside copies of it that see Poisson resamples of every batch.

    Memory does not grow with the number of samples when that of the metric does not.

    Args:
        metric: of inputs whose first dimension counts samples.
        seed: of the resamples. Two objects of one seed that see batches of the same sizes draw the
            same samples, so their replicates are paired.
        replicates: how many copies.
    """

    def __init__(self, metric: Metric, *, seed: int = 0, replicates: int = 200) -> None:
        self.metric, self.seed, self.n, self._updates = metric, seed, 0, 0
        self.copies = BootStrapper(metric, num_bootstraps=replicates, mean=False, std=False, raw=True)

    def update(self, *tensors: Tensor, **options: Any) -> None:
        """Feeds a batch; every tensor has shape (B, ...)."""
        self.metric.update(*tensors, **options)
        self.n += len(tensors[0])
        self._updates += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "bootstrap", self._updates))
            self.copies.update(*tensors, **options)

    def fix(self, *tensors: Tensor, **options: Any) -> None:
        """Feeds a batch that is no sample but the thing itself: every copy sees it as it is."""
        for metric in (self.metric, *self.copies.metrics):
            metric.update(*tensors, **options)

    def compute(self) -> tuple[float, Tensor]:
        """The value, and those of the replicates: float64, (R,).

        Raises:
            ValueError: fewer than ``FEWEST`` samples.
        """
        if self.n < FEWEST:
            raise ValueError(f"an interval needs at least {FEWEST} samples, not {self.n}")
        return float(self.metric.compute()), self.copies.compute()["raw"].double()


class Mean:
    """The mean of one number a sample; the interval is the percentile interval of the bootstrap."""

    def __init__(self, seed: int = 0) -> None:
        self._mean = Bootstrapped(MeanMetric(nan_strategy="disable").set_dtype(torch.float64), seed=seed)

    def update(self, values: Tensor) -> None:
        """Feeds values (B,)."""
        self._mean.update(values.detach().cpu().double())

    def compute(self) -> Estimate:
        """The mean.

        Raises:
            ValueError: fewer than ``FEWEST`` samples.
        """
        value, replicates = self._mean.compute()
        return Estimate(value, *quantiles(replicates), self._mean.n, "bootstrap")
