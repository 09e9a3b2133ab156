"""Elijah's trigger inversion: match the mean shift at the last timestep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator, generator
from backdrift.core.shift import Solver
from backdrift.inversion._base import Candidate, Progress


@dataclass(frozen=True)
class Elijah:
    """Minimises ``mean_pixels | scale tau - mean_b eps_hat(n_b + tau, T-1) |`` by Adam.

    An et al.: Elijah: Eliminating Backdoors Injected in Diffusion Models via Distribution Shift, AAAI
    2024, arXiv 2312.00050. One fixed batch of noise, one timestep, start ``-U(0, 1)``: the settings
    that its code uses for 32-pixel models.

    Deviations: ``scale`` is .5 for every model, as a defender does not know the sampler family (its
    code switches to 1 for the ODE attack that it knows to be there); the noise is seeded.
    """

    noises: int = 100
    steps: int = 100
    learning_rate: float = 0.1
    scale: float = 0.5
    family: Solver = "sde"

    @property
    def cost(self) -> int:
        """Network evaluations."""
        return 3 * self.noises * self.steps

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`. Gain is the final loss."""
        noise = SampleGenerator(seed, self.noises, "elijah").normal(model.sample_shape, model.device)
        if start is None:
            start = -torch.rand(model.sample_shape, generator=generator(seed, "elijah", "start"))
        tau = start.detach().clone().to(model.device).requires_grad_(True)
        optimizer = torch.optim.Adam([tau], lr=self.learning_rate)
        history = []
        with model.frozen():
            for step in range(self.steps):
                mean = model(noise + tau, len(model.schedule) - 1).mean(0)
                loss = (self.scale * tau - mean).abs().mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                history.append(float(loss.detach()))
                if progress is not None:
                    progress(step + 1, self.steps, f"elijah, loss {history[-1]:.4f}")
        found = tau.detach()
        return (Candidate(found, self.family, "elijah", history[-1], history=tuple(history)),)
