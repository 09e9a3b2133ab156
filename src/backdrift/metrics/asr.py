"""Attack success rate: the share of triggered samples that hit the target."""

from __future__ import annotations

from dataclasses import dataclass

from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.trigger import Target
from backdrift.metrics.draws import batches
from backdrift.metrics.rates import wilson

higher_is_better = True


@dataclass(frozen=True)
class AttackSuccess:
    """ASR beside the rate without the trigger, on the same seeds.

    Args:
        asr: in [0, 1].
        rate_without_trigger: hits of clean samples, in [0, 1].
        threshold: MSE in [0, 1] units that a hit stays below.
        n: samples for each of the two.
        sampler: with its number of steps, for example ``ddpm, 50 steps``.
        interval: Wilson 95% interval of the ASR; ``interval_without_trigger`` of the other rate.
    """

    asr: float
    rate_without_trigger: float
    threshold: float
    n: int
    sampler: str
    seed: int
    interval: tuple[float, float]
    interval_without_trigger: tuple[float, float]


def attack_success(
    model: DiffusionModel,
    injection: Injection,
    target: Target,
    *,
    sampler: str,
    steps: int = 50,
    n: int = 256,
    seed: int = 0,
) -> AttackSuccess:
    """Draws with and without the trigger and counts hits; see :class:`AttackSuccess`.

    Args:
        injection: how the trigger enters the sampler.
        sampler: a name of ``core.sampling.SAMPLERS``.
    """

    def hits(added: Injection | None) -> int:
        drawn = batches(model, added, sampler=sampler, steps=steps, n=n, seed=seed)
        return sum(int(target.hits(samples).sum()) for samples in drawn)

    with_it, without = hits(injection), hits(None)
    name = f"{sampler}, {steps} steps"
    intervals = wilson(with_it, n), wilson(without, n)
    return AttackSuccess(with_it / n, without / n, target.threshold, n, name, seed, *intervals)
