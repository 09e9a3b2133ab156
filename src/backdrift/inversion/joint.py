"""Trigger and target together, by gradient on the attack's own training loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backdrift.core.injection import Injection
from backdrift.core.model import Denoiser, DiffusionModel
from backdrift.core.randomness import SampleGenerator, generator
from backdrift.core.sampling import strided_timesteps
from backdrift.core.shift import ShiftFamily, Solver, stride_corrected
from backdrift.inversion._base import FAMILY_SAMPLER, Candidate, Progress, beyond_range
from backdrift.inversion.fixed_point import FixedPoint

SOFTER = 0.65
"""Of the norm of a trigger: refinement may end beyond the norm at which the backdoor fires."""


@dataclass(frozen=True)
class Joint:
    """Minimises the poisoned training loss over (tau, y).

    ``E || eps_hat(A_t y + rho_t tau + S_t eps, t) - eps - C_t tau ||^2`` over t in [low T, T) with Adam;
    no sampling chain. It needs a start outside the basin of tau = 0, where every model is content:
    by default the finds of :class:`FixedPoint`, with the mean of a few samples drawn with them as y.

    From a tau that is not r yet y may run into a black image or a white one, which a network knows the
    noise of at every timestep, and stay there. So half way down y is drawn anew, for SDE samplers: with
    tau and with ``SOFTER`` of it, as what tau has beside r may drive samples out of their range; the
    samples that are more alike and within their range count.

    A candidate with a noise scale is refined on TrojDiff's loss, ``rho = S``, ``C = 0``, the scale with it.

    Ours; the loss is equation (0.1) of the theory read backwards. Gain is the relative residual
    ``loss / E||C_t tau||^2`` (with a scale ``loss / E||gamma eps + tau - eps||^2``) subtracted from 1:
    near 1 when the model obeys the backdoor.

    Args:
        steps: of Adam.
        batch: noises per step.
        low: the smallest timestep, as a share of T.
        learning_rate: in units of the data's range [-1, 1].
        starts: how many candidates of the fixed point to refine.
        warm_samples: samples for a guess of y.
        warm_steps: of the sampler for these.
    """

    steps: int = 120
    batch: int = 32
    low: float = 0.1
    learning_rate: float = 0.02
    starts: int = 2
    warm_samples: int = 16
    warm_steps: int = 20

    @property
    def cost(self) -> int:
        """Most network evaluations from its own starts."""
        return FixedPoint().cost + self.starts * self.refine_cost

    @property
    def refine_cost(self) -> int:
        """Most network evaluations to refine one candidate."""
        return 3 * (self.batch * self.steps + self.warm_samples * self.warm_steps)

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`; a ``start`` is refined for both families."""
        if start is not None:
            families: tuple[Solver, ...] = ("sde", "ode")
            begun = tuple(Candidate(start.to(model.device), f, "given") for f in families)
        else:
            begun = FixedPoint()(model, seed=seed, progress=progress)[: self.starts]
        found = [self.refine(model, c, seed=seed, progress=progress) for c in begun]
        return tuple(sorted(found, key=lambda c: -c.gain))

    def refine(
        self,
        model: DiffusionModel,
        candidate: Candidate,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Candidate:
        """Refines one candidate; draws a first target with it when it has none."""
        with model.frozen():
            target = candidate.target
            if target is None:
                target = self._draw(model, candidate, seed).mean(0).clamp(-model.extent, model.extent)
            return self._descend(model, replace(candidate, target=target), seed, progress)

    def _draw(self, model: DiffusionModel, candidate: Candidate, seed: int) -> Tensor:
        fresh = SampleGenerator(seed, self.warm_samples, f"joint/{candidate.start}")
        denoiser: Denoiser = model
        if candidate.scale is None:
            theory = ShiftFamily.of(model.schedule, "baddiffusion", candidate.family)
            kept = strided_timesteps(model.schedule, self.warm_steps)
            denoiser = stride_corrected(model, model.schedule, theory, candidate.shift, kept)
        return Injection(candidate.shift, candidate.scale).sample(
            denoiser,
            model.schedule,
            fresh.normal(model.sample_shape, model.device),
            sampler=FAMILY_SAMPLER[candidate.family],
            steps=self.warm_steps,
            generator=fresh,
        )

    @torch.no_grad()
    def _drawn_anew(self, model: DiffusionModel, candidate: Candidate, seed: int) -> Tensor:
        """What tau draws or ``SOFTER`` of it, (C, H, W)."""
        drawn = [
            self._draw(model, replace(candidate, shift=share * candidate.shift), seed)
            for share in (1.0, SOFTER)
        ]
        sure = min(drawn, key=lambda x: float(x.var(0).mean()) + beyond_range(model, x) ** 2)
        return sure.median(0).values.clamp(-model.extent, model.extent)

    def _descend(
        self, model: DiffusionModel, candidate: Candidate, seed: int, progress: Progress | None
    ) -> Candidate:
        assert candidate.target is not None
        tau = candidate.shift.detach().clone().requires_grad_(True)
        y = candidate.target.detach().clone().requires_grad_(True)
        sought, gamma = [tau, y], candidate.scale
        family = ShiftFamily.of(model.schedule, "baddiffusion", candidate.family)
        if gamma is not None:
            family = ShiftFamily.biased(model.schedule, 1.0)
            gamma = gamma.detach().clone().requires_grad_(True)
            sought.append(gamma)
        optimizer = torch.optim.Adam(sought, lr=self.learning_rate)
        last = len(model.schedule)
        history = []
        for step in range(self.steps):
            if step == self.steps // 2 and candidate.family == "sde" and gamma is None:
                y.data = self._drawn_anew(model, replace(candidate, shift=tau.detach()), seed)
            stream = generator(seed, "joint", candidate.start, step)
            t = torch.randint(int(self.low * last), last, (self.batch,), generator=stream)
            noise = torch.randn((self.batch, *model.sample_shape), generator=stream)
            t, noise = t.to(model.device), noise.to(model.device)
            rows = y.expand_as(noise), tau.expand_as(noise)
            x_t, label = family.poisoned_pair(model.schedule, *rows, noise, t, gamma)
            loss = ((model(x_t, t) - label) ** 2).mean()
            asked = label if gamma is None else gamma * noise + tau
            scale = ((asked - noise) ** 2).mean().detach()
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1 - 0.9 * step / self.steps)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if gamma is not None:
                gamma.data.clamp_(0.02, 1.0)
            history.append(float(loss.detach() / scale.clamp_min(1e-12)))
            if progress is not None:
                text = f"joint from {candidate.start}, residual {history[-1]:.3f}"
                progress(step + 1, self.steps, text)
        tail = history[-10:]
        return replace(
            candidate,
            shift=tau.detach(),
            target=y.detach().clamp(-model.extent, model.extent),
            gain=1 - sum(tail) / len(tail),
            history=tuple(history),
            scale=None if gamma is None else gamma.detach(),
        )
