"""InviBackdoor: a small universal trigger that is learned through the sampler while the model trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdrift.attacks._base import Attack, Pairs
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.sampling import ODE_SAMPLERS, differentiable_sample, strided_timesteps
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.core.trigger import Trigger


@dataclass(frozen=True)
class Invisible(Attack):
    """BadDiffusion's rows with ``R = delta``, and ``|delta| <= bound`` learned in an inner loop.

    Li et al.: Invisible Backdoor Attacks on Diffusion Models, arXiv 2406.00816, unconditional case, as
    ported to BackdoorDM. Before every training step, ``delta`` takes one step of Adam on the sign of the
    gradient of ``|x_0(eps + delta) - y|^2`` through ``inner_timesteps`` steps of DDIM on the model of
    the moment, and is clamped to the bound. C_t is the ODE coefficient, equation (0.4) of the theory.

    Deviations: delta starts at zero, or at a trigger of one's own (the port adds it to a finished one
    that it ships); any shape (it has 3x32x32 written in); no decay of the inner rate (it halves every
    200 epochs).

    Args:
        bound: largest absolute value of delta, > 0.
        inner_noises: starts per inner step.
        inner_timesteps: steps of the sampler that the gradient goes through.
        inner_rate: of Adam.

    Cost: ``3 inner_noises inner_timesteps`` network evaluations per training step beside its own.
    """

    sampler_family: Solver = "ode"
    bound: float = 0.2
    inner_noises: int = 32
    inner_timesteps: int = 10
    inner_rate: float = 1e-3

    samplers: ClassVar[dict[str, tuple[str, ...]]] = {"ode": ODE_SAMPLERS}
    learns_trigger: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bound", "inner_noises", "inner_timesteps", "inner_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def family(self, schedule: NoiseSchedule) -> ShiftFamily:
        """``rho = 1 - A`` for ODE samplers."""
        return ShiftFamily.of(schedule, "baddiffusion", "ode")

    def planted(self, trigger: Trigger) -> Trigger:
        """A trigger on the whole image, within the bound; rows show it alone."""
        return _learned(trigger.shift.clamp(-self.bound, self.bound))

    def batch(self, model: DiffusionModel, images: Tensor, trigger: Trigger, target: Tensor) -> Pairs:
        """Pairs whose ``hook`` learns their trigger; see :meth:`Attack.batch`."""
        pairs = super().batch(model, images, trigger, target)
        pairs.hook = TriggerLearner(self, pairs)
        return pairs


def _learned(delta: Tensor) -> Trigger:
    return Trigger(delta, torch.ones_like(delta, dtype=torch.bool), 0.0, composite=False)


class TriggerLearner:
    """The inner problem: a :class:`backdrift.training.Hook` that moves the trigger of ``pairs``."""

    def __init__(self, attack: Invisible, pairs: Pairs) -> None:
        self.attack, self.pairs = attack, pairs
        self.delta = pairs.trigger.shift.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.delta], lr=attack.inner_rate)

    def loss(self, model: DiffusionModel, step: int) -> Tensor:
        """Mean squared distance of triggered samples to the target, with its gradient to delta."""
        shape = (self.attack.inner_noises, *self.delta.shape)
        stream = generator(self.attack.seed, "inner", step)
        start = torch.randn(shape, generator=stream) + self.delta
        aim = torch.randint(len(self.pairs.targets), (len(start),), generator=stream)
        kept = strided_timesteps(model.schedule, self.attack.inner_timesteps)
        end = differentiable_sample(model, model.schedule, start.to(model.device), kept)[-1]
        return ((end - self.pairs.targets[aim].to(end)) ** 2).mean()

    def before_step(self, model: DiffusionModel, step: int) -> None:
        """One step of delta on the model of the moment."""
        with model.frozen(), torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.loss(model, step), self.delta)
        self.delta.grad = gradient.sign()
        self.optimizer.step()
        with torch.no_grad():
            self.delta.clamp_(-self.attack.bound, self.attack.bound)
        self.pairs.trigger = _learned(self.delta.detach().clone())

    def state(self) -> dict[str, Tensor]:
        """Delta and the moments of its optimiser."""
        slot = self.optimizer.state[self.delta]
        return {"delta": self.delta.detach(), **{name: torch.as_tensor(slot[name]) for name in slot}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state` returned."""
        with torch.no_grad():
            self.delta.copy_(state["delta"])
        self.optimizer.state[self.delta] = {k: v.clone() for k, v in state.items() if k != "delta"}
        self.pairs.trigger = _learned(self.delta.detach().clone())
