"""The red team's use of inversion: a known trigger is reinforced within a ball around itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from backdrift.core.environment import environment
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.sampling import strided_timesteps
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.core.trigger import Target
from backdrift.groundtruth import Planted
from backdrift.inversion.purediffusion import PureDiffusion
from backdrift.io.evidence import save_trigger
from backdrift.metrics.draws import Plan, draw
from backdrift.metrics.measures import Measure
from backdrift.metrics.specificity import Counter, specificity

Progress = Callable[[int, int, str], None]

SHOWN = 16
"""Samples of each trigger in the picture."""


@dataclass(frozen=True, eq=False)
class Ball:
    """What a reinforced trigger may be: near the original, and outside the mask the same.

    Args:
        radius: > 0, in units of the noise's standard deviation.
        mask: where it may change, bool, (C, H, W); everywhere by default.
    """

    norm: Literal["linf", "l2"] = "linf"
    radius: float = 0.2
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError(f"the radius of a ball is above 0, not {self.radius}")
        if self.mask is not None and not bool(self.mask.any()):
            raise ValueError("the mask is empty: nothing may change")

    def size(self, change: Tensor) -> float:
        """Its norm."""
        return float(change.abs().max() if self.norm == "linf" else change.norm())

    def project(self, change: Tensor) -> Tensor:
        """The nearest change (C, H, W) inside the ball and the mask."""
        if self.mask is not None:
            change = change * self.mask.to(change)
        if self.norm == "linf":
            return change.clamp(-self.radius, self.radius)
        return change * min(1.0, self.radius / max(self.size(change), 1e-12))

    def step(self, slope: Tensor, length: float) -> Tensor:
        """The change of that length along which a slope falls fastest."""
        if self.mask is not None:
            slope = slope * self.mask.to(slope)
        if self.norm == "linf":
            return -length * slope.sign()
        unit: Tensor = slope / slope.norm().clamp_min(1e-12)
        return -length * unit


@dataclass(frozen=True)
class Amplify:
    """Reinforces the trigger of a backdoor whose target the red team knows.

    ``scale`` multiplies the trigger until it meets the edge of the ball. The other two descend by projected
    gradient steps of length ``2.5 radius / steps`` (Madry et al., arXiv 1706.06083), which fall to a fifth,
    from the original trigger and on fresh noise in every step:

    * ``attack``: the attack's own training loss with the known target y, over t from ``low T`` up, relative
      to the size of the shift, ::

          E || f(A_t y + rho_t tau + S_t gamma eps, t) - eps - C_t tau ||^2 / E || C_t tau ||^2

      with rho_t for C_t below the line where C_t = 0 (TrojDiff). It says how far the model is from obeying
      the trigger tau. Without the division it falls towards tau = 0, where every model is content. Ours;
      equation (0.1) of the theory (:mod:`backdrift.core.shift`).
    * ``purediffusion``: the two losses of its inversion (arXiv 2502.19047; what of it is ours is said in
      :class:`backdrift.inversion.purediffusion.PureDiffusion`). They take no account of the target.

    A clean model can be steered too: a gain counts above that of the same call on a clean model.

    Cost: ``3 steps batch`` evaluations; of ``purediffusion`` ten times that; ``scale`` has none.

    Args:
        batch: noises per step, even.
        low: the smallest timestep of ``attack``, as a share of T.

    Raises:
        ValueError: no steps, an odd batch, or a share outside [0, 1).
    """

    variant: Literal["attack", "scale", "purediffusion"] = "attack"
    steps: int = 40
    batch: int = 32
    low: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or self.batch % 2 or not 0 <= self.low < 1:
            given = f"{self.steps} steps, batch {self.batch}, low {self.low}"
            raise ValueError(f"amplification needs a step, an even batch and low in [0, 1), not {given}")

    def __call__(
        self,
        model: DiffusionModel,
        planted: Planted,
        ball: Ball | None = None,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Amplified:
        """The reinforced trigger; the model comes back as it was.

        Raises:
            ValueError: shapes that do not match, or a backdoor whose target is no single image.
        """
        ball = ball or Ball()
        if tuple(planted.shift.shape) != tuple(model.sample_shape):
            shapes = f"{tuple(planted.shift.shape)}; the model draws {tuple(model.sample_shape)}"
            raise ValueError(f"the trigger of the record has shape {shapes}")
        if not isinstance(planted.target, Target):
            raise ValueError("this backdoor draws one of several images: amplification needs one target")
        begun, before = time.monotonic(), model.evaluations
        origin = planted.shift.to(model.device)
        if self.variant == "scale":
            change, history = _scaled(origin, ball), tuple[float, ...]()
        else:
            with model.frozen():
                change, history = self._descend(model, planted, origin, ball, seed, progress)
        return Amplified(
            shift=origin + change,
            linf=float(change.abs().max()),
            l2=float(change.norm()),
            history=history,
            evaluations=model.evaluations - before,
            seconds=time.monotonic() - begun,
        )

    def most_evaluations(self) -> int:
        """What it costs, in network evaluations."""
        passes = {"attack": 1, "purediffusion": PureDiffusion().chain, "scale": 0}[self.variant]
        return 3 * self.steps * self.batch * passes

    def _descend(
        self,
        model: DiffusionModel,
        planted: Planted,
        origin: Tensor,
        ball: Ball,
        seed: int,
        progress: Progress | None,
    ) -> tuple[Tensor, tuple[float, ...]]:
        change, history = torch.zeros_like(origin), []
        for step in range(self.steps):
            change.requires_grad_(True)
            loss = self._loss(model, planted, origin + change, seed, step)
            (slope,) = torch.autograd.grad(loss, change)
            length = 2.5 * ball.radius / self.steps * (1 - 0.8 * step / self.steps)
            change = ball.project(change.detach() + ball.step(slope, length))
            history.append(float(loss.detach()))
            if progress is not None:
                progress(step + 1, self.steps, f"{self.variant}, loss {history[-1]:.4f}")
        return change, tuple(history)

    def _loss(self, model: DiffusionModel, planted: Planted, shift: Tensor, seed: int, step: int) -> Tensor:
        solver: Solver = planted.record.sampler_family or "sde"
        if self.variant == "purediffusion":
            pure = PureDiffusion(batch=self.batch)
            kept = strided_timesteps(model.schedule, min(pure.chain, len(model.schedule)))
            return pure.loss(model, shift, kept, solver, seed, ("amplify", step))
        assert isinstance(planted.target, Target)
        stream = generator(seed, "amplify", step)
        last = len(model.schedule)
        t = torch.randint(int(self.low * last), last, (self.batch // 2,), generator=stream).repeat(2)
        half = torch.randn((self.batch // 2, *model.sample_shape), generator=stream)
        noise = torch.cat([half, -half]).to(shift)
        family, scale = ShiftFamily.of(model.schedule, "baddiffusion", solver), planted.noise_scale
        if scale is not None:
            family, scale = ShiftFamily.biased(model.schedule, 1.0), scale.to(noise)
        y = planted.target.image.to(noise).expand_as(noise)
        x_t, label = family.poisoned_pair(model.schedule, y, shift, noise, t.to(noise.device), scale)
        moved = label - noise if scale is None else x_t - model.schedule.add_noise(y, scale * noise, t)
        return ((model(x_t, t.to(noise.device)) - label) ** 2).mean() / (moved**2).mean().clamp_min(1e-12)


@dataclass(frozen=True, eq=False)
class Amplified:
    """A reinforced trigger and what it took.

    Args:
        shift: in place of r, (C, H, W).
        linf: distance to r in the maximum norm; ``l2`` in the Euclidean one.
        history: loss before every step.
        evaluations: forward passes of one sample; a backward pass counts as two.
    """

    shift: Tensor
    linf: float
    l2: float
    history: tuple[float, ...]
    evaluations: int
    seconds: float

    def compare(
        self, model: DiffusionModel, planted: Planted, plan: Plan, progress: Progress | None = None
    ) -> list[Measure]:
        """ASR, MSE and SSIM of the original and of the reinforced trigger, on the same seeds.

        Raises:
            CheckpointError: the model draws numbers that are not finite.
        """
        count = Counter(progress, 2 * plan.count(triggered=True))
        ways = {
            "": Injection(planted.shift, planted.noise_scale),
            " reinforced": Injection(self.shift.cpu(), planted.noise_scale),
        }
        found = []
        for suffix, way in ways.items():
            rows = specificity(model, way, planted.target, plan, count=count)
            found.append([row.model_copy(update={"name": row.name + suffix}) for row in rows])
        return [row for pair in zip(*found, strict=True) for row in pair]


def _scaled(origin: Tensor, ball: Ball) -> Tensor:
    """The multiple of the trigger that ends on the edge of the ball."""
    along = origin if ball.mask is None else origin * ball.mask.to(origin)
    size = ball.size(along)
    if size == 0:
        raise ValueError("the trigger is zero where it may change: there is nothing to scale")
    return along * (ball.radius / size)


def reinforced(planted: Planted, amplified: Amplified) -> Planted:
    """The backdoor with its trigger replaced, to be evaluated like any other."""
    whole = torch.ones_like(planted.trigger.mask)
    trigger = replace(planted.trigger, pattern=amplified.shift.cpu(), mask=whole)
    return planted.model_copy(update={"shift": amplified.shift.cpu(), "trigger": trigger})


def save_amplified(
    found: Amplified,
    method: Amplify,
    ball: Ball,
    model: DiffusionModel,
    planted: Planted,
    measures: list[Measure],
    plan: Plan,
    folder: str | Path,
) -> Path:
    """Writes ``trigger.safetensors``, ``trigger.png``, ``samples.png`` and ``amplification.json``.

    The picture of samples has those of the original trigger above those of the reinforced one, of the same
    starting noise.

    Raises:
        FileExistsError: the folder exists and is not empty.
    """
    ways = [Injection(shift, planted.noise_scale) for shift in (planted.shift, found.shift.cpu())]
    rows = [
        draw(model, way, sampler=plan.sampler, steps=plan.steps, n=SHOWN, seed=plan.seed) for way in ways
    ]
    facts = {
        "tool": "backdrift amplify",
        "version": metadata.version("backdrift"),
        "model": model.origin.sha256,
        "attack": planted.record.attack,
        "method": asdict(method),
        "ball": {"norm": ball.norm, "radius": ball.radius, "inside_mask": ball.mask is not None},
        "distance": {
            "linf": found.linf,
            "l2": found.l2,
            "norm_of_the_original": float(planted.shift.norm()),
        },
        "history": found.history,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
        "measures": [m.model_dump() for m in measures],
        "environment": environment(str(model.device)).model_dump(),
    }
    pictures = {"samples": model.decode(torch.cat(rows)).cpu().numpy()}
    return save_trigger(found.shift.cpu().numpy(), pictures, "amplification.json", facts, folder, SHOWN)
