"""How to train, and what a step draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backdrift.core.randomness import generator


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    The optimiser is that of BadDiffusion (arXiv 2212.05400): Adam, gradient norm clipped to 1, cosine
    to zero after a warm-up. Deviation: the warm-up is a share of the steps, so that a short run ends
    where its schedule ends.

    Args:
        steps: optimiser steps.
        batch_size: rows per step, over all processes.
        learning_rate: peak. The small networks here bear more than the published 2e-4.
        warm_up: share of the steps.
        seed: of rows, noise and timesteps; step k of a run depends on (seed, k) alone.
        checkpoint_every: steps between two resumable states; 0 keeps none.
        run: what is trained on what, as text; a state of another run is not resumed.
        accumulate: parts that the rows of a step are taken in, one after the other; memory falls with
            it, the result stays but for rounding, and a step is still one step of the schedule (in the
            published codes the cosine never ends with accumulation).
        ema: decay of an exponential moving average of the weights, which then is what is kept; 0 is none.
            It warms up as ``min(ema, (1 + n) / (10 + n))`` after n steps.
        mixed_precision: of the network's passes, where the hardware has it; weights stay float32.
        offset_noise: standard deviation of a constant that every row and channel gets on top of its noise
            (N. Guttenberg, Diffusion with Offset Noise, CrossLabs 2023). The mean of plain noise is of
            variance 1 / (H W), that of images in colour far more, so what is to be answered to it falls
            from all to nothing in the first timesteps of a sample. Small networks do not learn that soon,
            and their colours drift. Samplers start from plain noise all the same.

    Raises:
        ValueError: a value that makes no sense.
    """

    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warm_up: float = 0.05
    seed: int = 0
    checkpoint_every: int = 250
    run: str = ""
    accumulate: int = 1
    ema: float = 0.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    offset_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"{self.batch_size} rows do not fall into {self.accumulate} equal parts")
        if not 0 <= self.ema < 1:
            raise ValueError(f"the decay of the average lies in [0, 1), not at {self.ema}")


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Cosine with warm-up; ``step`` counts from 0."""
    warm = max(1, round(config.warm_up * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def draw(
    config: TrainingConfig, step: int, rows: int, timesteps: int, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Row indices (B,), timesteps (B,) and noise (B, C, H, W) of one step, all from (seed, step)."""
    stream = generator(config.seed, "train", step)
    index = torch.randint(rows, (config.batch_size,), generator=stream)
    t = torch.randint(timesteps, (config.batch_size,), generator=stream)
    noise = torch.randn((config.batch_size, *shape), generator=stream)
    if config.offset_noise:
        noise += config.offset_noise * torch.randn((config.batch_size, shape[0], 1, 1), generator=stream)
    return index, t, noise
