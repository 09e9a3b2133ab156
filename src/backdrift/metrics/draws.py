"""Samples of a model with and without a shift of the starting noise, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.hooks import SamplingHook
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import PostStep
from backdrift.io.errors import CheckpointError
from backdrift.metrics.bootstrap import FEWEST
from backdrift.metrics.measures import Measure
from backdrift.metrics.rates import Estimate


def batches(
    model: DiffusionModel,
    injection: Injection | None,
    *,
    sampler: str,
    steps: int,
    n: int,
    seed: int,
    post_step: PostStep | None = None,
    hook: SamplingHook | None = None,
) -> Iterator[Tensor]:
    """Samples (B, C, H, W) in batches of at most ``model.batch_size``, n in all; not clamped.

    Sample i starts from the same noise whatever the batches are, with or without an injection.

    Args:
        post_step: see :func:`backdrift.core.sampling.sample`.
        hook: a countermeasure; ``post_step`` comes after it.
    """
    way = injection or Injection(torch.zeros(model.sample_shape))
    size = model.batch_size
    for start in range(0, n, size):
        fresh = SampleGenerator(seed, range(start, min(n, start + size)), "asr")
        noise = fresh.normal(model.sample_shape, model.device)
        yield way.sample(
            model,
            model.schedule,
            noise,
            hook=hook,
            sampler=sampler,
            steps=steps,
            generator=fresh,
            post_step=post_step,
        )


def draw(
    model: DiffusionModel,
    injection: Injection | None,
    *,
    sampler: str,
    steps: int,
    n: int,
    seed: int,
    hook: SamplingHook | None = None,
) -> Tensor:
    """All of :func:`batches` at once: (n, C, H, W)."""
    drawn = batches(model, injection, sampler=sampler, steps=steps, n=n, seed=seed, hook=hook)
    return torch.cat(list(drawn))


def latents(
    model: DiffusionModel,
    injection: Injection | None,
    *,
    sampler: str,
    steps: int,
    n: int,
    seed: int,
    frames: int = 10,
    hook: SamplingHook | None = None,
) -> tuple[Tensor, list[int]]:
    """States on the way from noise to image: the figure of BadDiffusion's appendix D.

    The samples are those of :func:`batches`. Memory grows with ``n * frames``.

    Returns:
        States after ``frames`` steps, evenly spaced and the last among them, (n, F, C, H, W), and the
        timestep that each of those steps left, (F,).
    """
    count = min(frames, steps)
    kept = {round((k + 1) * steps / count) for k in range(count)}
    seen: list[tuple[Tensor, int]] = []
    rows: list[Tensor] = []

    def keep(x: Tensor, timestep: int) -> Tensor:
        seen.append((x.cpu() if len(seen) + 1 in kept else x[:0], timestep))
        return x

    times: list[int] = []
    drawn = batches(
        model, injection, sampler=sampler, steps=steps, n=n, seed=seed, post_step=keep, hook=hook
    )
    for _ in drawn:
        picked = [pair for number, pair in enumerate(seen, start=1) if number in kept]
        rows.append(torch.stack([x for x, _ in picked], dim=1))
        times = [t for _, t in picked]
        seen.clear()
    return torch.cat(rows), times


@dataclass(frozen=True)
class Plan:
    """How samples are drawn.

    Args:
        samples: without the trigger, and of a clean twin.
        sampler: a name of ``core.sampling.SAMPLERS``.
        seed: of the noise and of the bootstraps; the starting noise with and without the trigger, and
            that of a clean twin, is the same.
        triggered: samples with the trigger; as many as without by default. A rate needs fewer of them
            than a distance.
    """

    samples: int = 1000
    sampler: str = "ddpm"
    steps: int = 100
    seed: int = 0
    triggered: int | None = None

    def __post_init__(self) -> None:
        fewest = min(self.samples, self.count(triggered=True))
        if fewest < FEWEST:
            raise ValueError(f"an interval needs at least {FEWEST} samples, not {fewest}")

    def count(self, *, triggered: bool) -> int:
        """How many samples are drawn."""
        return self.samples if not triggered or self.triggered is None else self.triggered

    def draw(
        self, model: DiffusionModel, injection: Injection | None, hook: SamplingHook | None = None
    ) -> Iterator[Tensor]:
        """Batches (B, C, H, W) on the CPU.

        Raises:
            CheckpointError: the model draws numbers that are not finite.
        """
        n = self.count(triggered=injection is not None)
        drawn = batches(
            model, injection, sampler=self.sampler, steps=self.steps, n=n, seed=self.seed, hook=hook
        )
        for batch in drawn:
            if not bool(batch.isfinite().all()):
                raise CheckpointError("the model draws no finite numbers; nothing was measured", "BD404")
            yield model.decode(batch).cpu()

    def measure(self, name: str, estimate: Estimate, meaning: str) -> Measure:
        """An estimate of samples that were drawn so."""
        return Measure.of(name, estimate, meaning, sampler=self.sampler, steps=self.steps, seed=self.seed)
