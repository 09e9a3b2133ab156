"""Attack success rate: the share of triggered samples that hit the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.trigger import Target, TargetSet
from backdrift.metrics.draws import batches
from backdrift.metrics.rates import wilson

Progress = Callable[[int, int, str], None]

higher_is_better = True


@dataclass(frozen=True)
class AttackSuccess:
    """ASR beside the rate without the trigger, on the same seeds.

    Args:
        asr: in [0, 1].
        rate_without_trigger: hits of clean samples, in [0, 1].
        threshold: MSE in [0, 1] units that a hit stays below; None for a set of targets.
        n: samples for each of the two.
        sampler: with its number of steps, for example ``ddpm, 50 steps``.
        interval: Wilson 95% interval of the ASR; ``interval_without_trigger`` of the other rate.
    """

    asr: float
    rate_without_trigger: float
    threshold: float | None
    n: int
    sampler: str
    seed: int
    interval: tuple[float, float]
    interval_without_trigger: tuple[float, float]


def attack_success(
    model: DiffusionModel,
    injection: Injection,
    target: Target | TargetSet,
    *,
    sampler: str,
    steps: int = 50,
    n: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttackSuccess:
    """Draws with and without the trigger and counts hits; see :class:`AttackSuccess`.

    Args:
        injection: how the trigger enters the sampler.
        sampler: a name of ``core.sampling.SAMPLERS``.
        progress: called with samples drawn, of ``2 n``, and a text.
    """
    done = 0

    def hits(added: Injection | None) -> int:
        nonlocal done
        found, text = 0, "measuring, " + ("without trigger" if added is None else "with trigger")
        if progress is not None:
            progress(done, 2 * n, text)
        for samples in batches(model, added, sampler=sampler, steps=steps, n=n, seed=seed):
            found, done = found + int(target.hits(model.decode(samples)).sum()), done + len(samples)
            if progress is not None:
                progress(done, 2 * n, text)
        return found

    with_it, without = hits(injection), hits(None)
    name = f"{sampler}, {steps} steps"
    intervals = wilson(with_it, n), wilson(without, n)
    threshold = target.threshold if isinstance(target, Target) else None
    return AttackSuccess(with_it / n, without / n, threshold, n, name, seed, *intervals)
