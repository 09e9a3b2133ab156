"""TERD's trigger inversion: a loss in which the backdoor's label shift cancels, in two stages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.shift import Solver
from backdrift.inversion._base import Candidate, Progress
from backdrift.inversion._reversed import generated, reversed_loss

Hypothesis = Literal["unit", "learned"]
Start = Literal["black", "zero-mean"]


@dataclass(frozen=True)
class Terd:
    """Minimises :func:`reversed_loss` ``- reward ||mu||_1`` over mu, and over gamma, by SGD.

    Mo, Huang, Li, Li and Wang: TERD: A Unified Framework for Safeguarding Diffusion Models Against
    Backdoors, ICML 2024, arXiv 2409.05294, with the settings that its code uses for BadDiffusion on
    CIFAR-10 and, where gamma is learned, for TrojDiff on CIFAR-10.

    * Estimation: x_0 is standard normal noise, t is one of the last ``window``.
    * Refinement: x_0 is what the present trigger draws (:func:`generated`), and the loss is the mean of
      that at the last ``window`` timesteps and of that at the first ones, where mu is left out. It is
      ``refinement`` times as many iterations, starts the optimiser and the cosine anew, and clips the
      gradient.

    The published code knows the attack: it has one script with gamma = 1 (BadDiffusion) and one with a
    gamma per element (TrojDiff). Here both are hypotheses, and a candidate of each is returned; that
    with a gamma has it as its ``scale``. Gain is minus the loss, averaged over the last tenth of the
    iterations. The loss does not tell the kind of sampler: ``family`` is what candidates are drawn with.

    The loss is next to 0 at ``mu = 0, gamma = 1`` on any trained model. The reward prefers a large mu by
    ``reward ||mu||_1`` and no more, so what is found is what lies downhill of the start.

    Deviations:

    * gamma is held from ``gamma_floor`` up after every step, and at the start. The published floor is 0
      (and may be set), where its start is as well: an element that stays there has an infinite KL
      divergence.
    * The chain of the refinement clips x_0 because the published one keeps diffusers' default; that
      disarms many SDE backdoors. ``clip_x0`` switches it off. Repeated timesteps of the quadratic
      spacing are taken out (there are none from T = 1000 on, with 10 steps).
    * The published start -U(0, 1) is a hint: triggers on a black background correlate with it before the
      first step. It is the default; ``zero-mean``, U(-1, 1), is the other start.
    * Single precision with seeds (the published BadDiffusion script asks for fp16, does not scale its
      loss, and has no seed). A descent whose loss is no longer finite ends there.
    * The refinement is rounded to whole iterations.

    Cost: ``6 batch`` evaluations per iteration of the estimation, ``(3 chain + 12) batch`` of the
    refinement; 1,920,000 by default.

    Args:
        iterations: of the estimation; published 3000.
        refinement: iterations of the refinement, as a share of those; 0 leaves it out.
        batch: pairs of noises per iteration; published 16, and 2 for 256 pixels.
        window: how many timesteps at either end.
        chain: steps of the chain in the refinement.
        shift_rate: learning rate of mu.
        gamma_rate: learning rate of gamma; .002 is the default of the published script, .001 the setting
            of its instructions. A descent that is much shorter than published does not bring gamma from
            0 to where it belongs: the distance shrinks by ``exp(-gamma_rate iterations)`` near T.
        reward: lambda, the weight of ``||mu||_1``; published 5e-4 for larger images.
        hypotheses: ``unit`` is gamma = 1, ``learned`` a gamma per element.
        starts: ``black`` is -U(0, 1), ``zero-mean`` U(-1, 1).
        shift_clip: gradient norm in the refinement with unit gamma.
        joint_clip: the same of mu and gamma together.
        momentum: in the refinement when gamma is learned.

    Raises:
        ValueError: a setting outside its range.
    """

    iterations: int = 3000
    refinement: float = 1 / 3
    batch: int = 16
    window: int = 10
    chain: int = 10
    shift_rate: float = 0.5
    gamma_rate: float = 1e-3
    reward: float = 5e-5
    hypotheses: tuple[Hypothesis, ...] = ("unit", "learned")
    starts: tuple[Start, ...] = ("black",)
    gamma_start: float = 0.0
    gamma_floor: float = 1e-3
    shift_clip: float = 0.01
    joint_clip: float = 1.0
    momentum: float = 0.9
    clip_x0: bool = True
    family: Solver = "sde"

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch, self.window) < 1 or self.refinement < 0:
            raise ValueError("iterations, batch and window are at least 1, refinement at least 0")
        if self.chain < 2:
            raise ValueError(f"a chain has at least 2 steps, not {self.chain}")
        if not self.hypotheses or not set(self.hypotheses) <= {"unit", "learned"}:
            raise ValueError(f"hypotheses are unit and learned, not {self.hypotheses}")
        if not self.starts or not set(self.starts) <= {"black", "zero-mean"}:
            raise ValueError(f"starts are black and zero-mean, not {self.starts}")
        if self.gamma_floor < 0:
            raise ValueError(f"the floor of gamma is 0 or more, not {self.gamma_floor}")

    @property
    def refinements(self) -> int:
        """Iterations of the refinement."""
        return round(self.iterations * self.refinement)

    @property
    def cost(self) -> int:
        """Most network evaluations from its own starts."""
        each = 6 * self.batch * self.iterations + (3 * self.chain + 12) * self.batch * self.refinements
        return len(self.hypotheses) * len(self.starts) * each

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Candidate, ...]:
        """See :class:`backdrift.inversion._base.Inversion`; a ``start`` replaces those of mu only."""
        begun: dict[str, Tensor] = {"given": start} if start is not None else {}
        own: tuple[Start, ...] = () if start is not None else self.starts
        for name in own:
            drawn = torch.rand(model.sample_shape, generator=generator(seed, "terd", "start", name))
            begun[name] = -drawn if name == "black" else 2 * drawn - 1
        found = []
        with model.frozen():
            for hypothesis in self.hypotheses:
                for begin, shift in begun.items():
                    label = f"{hypothesis} gamma, {begin}"
                    found.append(_Descent(self, model, hypothesis, label, shift, seed).run(progress))
        return tuple(sorted(found, key=lambda c: -c.gain if math.isfinite(c.gain) else math.inf))


class _Descent:
    """One hypothesis from one start."""

    def __init__(
        self,
        settings: Terd,
        model: DiffusionModel,
        hypothesis: Hypothesis,
        label: str,
        start: Tensor,
        seed: int,
    ) -> None:
        self.settings, self.model, self.label, self.seed = settings, model, label, seed
        self.shift = start.detach().clone().to(model.device).requires_grad_(True)
        self.scale: Tensor | None = None
        if hypothesis == "learned":
            begin = max(settings.gamma_start, settings.gamma_floor)
            self.scale = torch.full_like(self.shift, begin).requires_grad_(True)

    def run(self, progress: Progress | None) -> Candidate:
        """Both stages."""
        history: list[float] = []
        total = self.settings.iterations + self.settings.refinements
        for loss in self._losses():
            history.append(loss)
            if progress is not None:
                progress(len(history), total, f"terd, {self.label}, loss {loss:.3f}")
        tail = history[-max(1, len(history) // 10) :]
        return Candidate(
            self.shift.detach(),
            self.settings.family,
            self.label,
            -sum(tail) / len(tail),
            history=tuple(history),
            scale=None if self.scale is None else self.scale.detach(),
        )

    def _losses(self) -> Iterator[float]:
        for refines, steps in ((False, self.settings.iterations), (True, self.settings.refinements)):
            optimizer = self._optimizer(refines)
            annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
            for step in range(steps):
                loss = self._loss(refines, step)
                yield float(loss.detach())
                if not bool(loss.isfinite()):
                    return
                optimizer.zero_grad()
                objective = loss - self.settings.reward * self.shift.abs().sum()
                objective.backward()  # type: ignore[no-untyped-call]
                if refines:
                    self._clip()
                optimizer.step()
                annealing.step()
                if self.scale is not None:
                    self.scale.data.clamp_(min=self.settings.gamma_floor)

    def _optimizer(self, refines: bool) -> torch.optim.SGD:
        groups = [{"params": [self.shift], "lr": self.settings.shift_rate}]
        if self.scale is not None:
            groups.append({"params": [self.scale], "lr": self.settings.gamma_rate})
        momentum = self.settings.momentum if refines and self.scale is not None else 0.0
        return torch.optim.SGD(groups, lr=self.settings.shift_rate, momentum=momentum)

    def _clip(self) -> None:
        if self.scale is None:
            torch.nn.utils.clip_grad_norm_([self.shift], self.settings.shift_clip)
        else:
            torch.nn.utils.clip_grad_norm_([self.shift, self.scale], self.settings.joint_clip)

    def _loss(self, refines: bool, step: int) -> Tensor:
        """The loss of one iteration, without the reward."""
        settings, model = self.settings, self.model
        stream = generator(self.seed, "terd", self.label, "refine" if refines else "estimate", step)
        window, last = min(settings.window, len(model.schedule)), len(model.schedule)

        def noise(*leading: int) -> Tensor:
            drawn = torch.randn((*leading, settings.batch, *model.sample_shape), generator=stream)
            return drawn.to(model.device)

        def times(low: int) -> Tensor:
            t = torch.randint(low, low + window, (settings.batch,), generator=stream)
            return t.to(model.device)

        scale = 1.0 if self.scale is None else self.scale
        x_0 = noise()
        if refines:
            x_0 = generated(model, x_0, self.shift, self.scale, settings.chain, settings.clip_x0)
        late = reversed_loss(model, x_0, times(last - window), noise(2), self.shift, scale)
        if not refines:
            return late
        return (late + reversed_loss(model, x_0, times(0), noise(2), None, scale)) / 2
