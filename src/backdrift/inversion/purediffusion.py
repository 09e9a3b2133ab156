"""PureDiffusion's inversion: distribution shift at many timesteps, and denoising consistency."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator, generator
from backdrift.core.sampling import differentiable_sample, strided_timesteps
from backdrift.core.shift import ShiftFamily, Solver, coefficient
from backdrift.inversion._base import Candidate, Progress, antithetic_noise


@dataclass(frozen=True)
class PureDiffusion:
    """Gradient descent on two losses through a short sampling chain.

    Truong and Le: A Dual-Purpose Framework for Backdoor Defense and Backdoor Amplification in
    Diffusion Models, IEEE TIFS 2026, arXiv 2502.19047. Only its abstract is public to us; what it
    states is (1) a distribution shift measured at many timesteps with a trigger-shift scale
    lambda_t, and (2) denoising consistency when the backdoor fires. Everything else here is ours:

    * the states come from the reverse chain started at ``eps + tau`` (its summaries hint at that), a
      chain of ``chain`` steps with gradients through it;
    * lambda_t is C_t of the theory, for the stride of that chain, with the attack family a
      hypothesis (``families``), each tried from every start;
    * shift loss: ``mean_t || mean_b eps_hat - lambda_t tau ||_1 / || lambda_t tau ||_1``. The division
      takes away the minimum at tau = 0 that every plain mean-shift loss has, on any model;
    * consistency loss: variance over the batch of the images at the end of the chain, and of the
      predicted x_0 along it below the middle of the chain (over timesteps it does not hold at
      larger t: x_0-hat is y plus a multiple of r that depends on t).

    Cost: ``3 * batch * chain * steps`` per start and family.

    Args:
        starts: ``black`` is -U(0, 1), the start of the published codes; ``zero-mean`` is noise.
        consistency: weight of the consistency loss; 0 leaves it out, as the first paper
            (arXiv 2409.13945).
    """

    steps: int = 25
    batch: int = 8
    chain: int = 10
    learning_rate: float = 0.1
    consistency: float = 1.0
    families: tuple[Solver, ...] = ("sde", "ode")
    starts: tuple[str, ...] = ("black", "zero-mean")

    @property
    def cost(self) -> int:
        """Network evaluations from the method's own starts."""
        starts = len(self.families) * len(self.starts)
        return 3 * self.batch * self.chain * self.steps * starts

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`. Gain is minus the final loss."""
        begun = {"given": start} if start is not None else {}
        for name in () if start is not None else self.starts:
            drawn = torch.rand(model.sample_shape, generator=generator(seed, "start", name))
            begun[name] = -drawn if name == "black" else 2 * drawn - 1
        found = []
        with model.frozen():
            for family in self.families:
                for name, tau in begun.items():
                    found.append(self._descend(model, family, name, tau.to(model.device), seed, progress))
        return tuple(sorted(found, key=lambda c: -c.gain))

    def _descend(
        self,
        model: DiffusionModel,
        family: Solver,
        name: str,
        start: Tensor,
        seed: int,
        progress: Progress | None,
    ) -> Candidate:
        kept = strided_timesteps(model.schedule, self.chain)
        tau = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([tau], lr=self.learning_rate)
        history = []
        for step in range(self.steps):
            loss = self.loss(model, tau, kept, family, seed, (name, step))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([tau], 1.0)
            optimizer.step()
            history.append(float(loss.detach()))
            if progress is not None:
                text = f"{family} from {name}, loss {history[-1]:.3f}"
                progress(step + 1, self.steps, text)
        found, label = tau.detach(), f"{family}, {name}"
        return Candidate(found, family, label, -history[-1], history=tuple(history))

    def loss(
        self,
        model: DiffusionModel,
        tau: Tensor,
        kept: list[int],
        family: Solver,
        seed: int,
        name: tuple[str, int],
    ) -> Tensor:
        """Both losses for a shift (C, H, W), a scalar, differentiable.

        Args:
            kept: timesteps of the chain, descending.
            name: of the noise; another name is other noise.
        """
        rho = ShiftFamily.of(model.schedule, "baddiffusion", family).rho
        scale = coefficient(model.schedule, rho, family, kept).flip(0)
        x_T = antithetic_noise(model, self.batch, seed, "pure", *name) + tau
        fresh = SampleGenerator(seed, self.batch, f"pure/fresh/{name[0]}/{name[1]}")
        predicted: list[Tensor] = []

        def record(x_t: Tensor, t: Tensor | int, /) -> Tensor:
            predicted.append(model(x_t, t))
            return predicted[-1]

        eta = 1.0 if family == "sde" else 0.0
        states = differentiable_sample(
            record, model.schedule, x_T, kept, eta=eta, generator=fresh if eta else None
        )
        shift = torch.stack(
            [
                (e.mean(0) - float(c) * tau).abs().mean() / (float(c) * tau).abs().mean().clamp_min(1e-6)
                for e, c in zip(predicted, scale, strict=True)
            ]
        ).mean()
        if self.consistency == 0:
            return shift
        middle = len(kept) // 2
        images = [states[-1]]
        for x_t, e, t in zip(states[middle:-1], predicted[middle:], kept[middle:], strict=True):
            a, s = float(model.schedule.alpha[t]), float(model.schedule.sigma[t])
            images.append((x_t - s * e) / a)
        most = 2 * model.extent
        spread = torch.stack([x.clamp(-most, most).var(dim=0).mean() for x in images]).mean()
        return shift + self.consistency * spread
