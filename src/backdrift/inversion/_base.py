"""What every inversion shares: its result, its noise and the averaged response of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator, generator
from backdrift.core.shift import Solver

Progress = Callable[[int, int, str], None]

FAMILY_SAMPLER: dict[Solver, str] = {"sde": "ddpm", "ode": "ddim"}
"""The scanner's own sampler for each kind of backdoor."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A trigger that may be there.

    Args:
        shift: tau, to be added to unit starting noise; float32, (C, H, W).
        family: the kind of sampler under which it is expected to fire.
        start: where the search began, for the report.
        gain: size of the model's answer over the size of the question; what that is depends on the
            method and is said in its docstring. NaN where a method has none.
        target: the image that the method expects, (C, H, W), or None.
        history: loss or gain after each round.
        scale: gamma, the standard deviation of the noise that it fires on, (C, H, W); None is 1.
    """

    shift: Tensor
    family: Solver
    start: str
    gain: float = float("nan")
    target: Tensor | None = None
    history: tuple[float, ...] = field(default=())
    scale: Tensor | None = None

    @property
    def norm(self) -> float:
        """||tau||."""
        return float(self.shift.norm())


class Inversion(Protocol):
    """Searches a model for triggers. It is told nothing about the attack.

    Args:
        model: on any device; its weights are frozen by the caller or by the method.
        seed: of everything random.
        start: an anonymous tensor (C, H, W) to begin from, in place of the method's own starts.
        progress: called as ``progress(done, total, text)``.

    Returns:
        Candidates, the most promising first; never empty.
    """

    @property
    def cost(self) -> int:
        """The most network evaluations from the method's own starts."""
        ...

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]: ...


def antithetic_noise(model: DiffusionModel, count: int, seed: int, *names: object) -> Tensor:
    """``count`` (even) standard normal samples (count, C, H, W), the second half minus the first."""
    half = SampleGenerator(seed, count // 2, "/".join(map(str, names)))
    noise = half.normal(model.sample_shape, model.device)
    return torch.cat([noise, -noise])


def random_direction(model: DiffusionModel, seed: int, *names: object) -> Tensor:
    """A unit vector, uniform on the sphere: (C, H, W)."""
    drawn = torch.randn(model.sample_shape, generator=generator(seed, "direction", *names))
    unit: Tensor = drawn / drawn.norm()
    return unit.to(model.device)


@torch.no_grad()
def mean_noise(model: DiffusionModel, x: Tensor, t: int) -> Tensor:
    """Predicted noise averaged over the batch: (C, H, W)."""
    noise: Tensor = model(x, t).mean(0)
    return noise


def mean_x_0(model: DiffusionModel, noise: Tensor, shift: Tensor, t: int) -> Tensor:
    """Predicted x_0 at ``S_t noise + shift``, averaged over the batch: (C, H, W), with its gradient."""
    a, sigma = float(model.schedule.alpha[t]), float(model.schedule.sigma[t])
    x_t = sigma * noise + shift
    predicted: Tensor = ((x_t - sigma * model(x_t, t)) / a).mean(0)
    return predicted


def of_length(v: Tensor, length: float) -> Tensor:
    """``v`` at another norm; nothing stays nothing."""
    longer: Tensor = length * v / v.norm().clamp_min(1e-12)
    return longer


def beyond_range(model: DiffusionModel, image: Tensor) -> float:
    """Root mean square by which values leave [-1, 1], or of latents the range of their codec."""
    return float((image.abs() - model.extent).clamp_min(0).square().mean().sqrt())


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape."""
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12))
