"""No attack: the same rows, noise and timesteps as a poisoned run, and nothing planted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backdrift.attacks._base import Attack
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily


@dataclass(frozen=True)
class Clean(Attack):
    """The clean twin of a model whose rows were replaced: plain DDPM (arXiv 2006.11239).

    Any attack with a poison rate of 0 trains the same. ``trigger`` and ``target`` are only measured.

    Raises:
        ValueError: a poison rate that is not 0.
    """

    poison_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.poison_rate:
            raise ValueError(f"clean plants nothing: its poison rate is 0, not {self.poison_rate}")

    def family(self, schedule: NoiseSchedule) -> ShiftFamily:
        """No shift at all."""
        nothing = torch.zeros_like(schedule.alpha)
        return ShiftFamily(f"clean/{self.sampler_family}", self.sampler_family, nothing, nothing)
