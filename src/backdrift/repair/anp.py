"""Adversarial neuron pruning: channels that a small perturbation turns into a backdoor are cut off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from backdrift.core.hooks import SamplingHook
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.detection._judge import Drawn, Judge
from backdrift.inversion._base import Candidate
from backdrift.metrics.draws import draw
from backdrift.repair._base import (
    Log,
    Progress,
    Repaired,
    check_data,
    check_least,
    own_images,
    working_copy,
)


@dataclass(frozen=True, eq=False)
class Discovery:
    """What a perturbed model draws from plain noise.

    Args:
        step: of the ascent.
        loss: the denoising loss there.
        target: median of half of the samples, (C, H, W) in [-1, 1]: the discovered target, if there is one.
        collapse: share of the other half that hit it, in [0, 1].
    """

    step: int
    loss: float
    target: Tensor
    collapse: float


@dataclass(frozen=True)
class Anp:
    """Both halves of adversarial neuron pruning, on every convolution of the network.

    **Perturbation** (:meth:`discover`), as in BadDiffusion, arXiv 2212.05400, section 4.6.1 and appendix
    B: every channel's output becomes ``g out + b``; g and b, from 1 and 0, climb the denoising loss on
    clean images with the weights frozen (Adam, rate 1e-4, gradient norm clipped to 1), both held in
    ``[-budget, budget]``. The hypothesis is that a backdoored model then draws its target from plain
    noise. The published code judges that by the MSE to the true target, best of all epochs; here, with no
    oracle, by the share of samples that are one image. ``relative`` is what ANP itself perturbs (weights
    and biases times ``1 + delta``, ``|delta| <= budget``), which the paper gave up as unstable.

    **Pruning**, which the published code lacks, as in Wu and Wang, NeurIPS 2021, arXiv 2110.14430,
    equations 5 and 6: masks m of the channels descend ``alpha L(m) + (1 - alpha) max L(m + delta, xi)`` by
    SGD with momentum .9, one signed ascent step of size ``pruning_budget`` for the inner maximum, m held in
    [0, 1]; channels with m below ``threshold`` are set to 0. Deviation: the last convolution is left alone,
    as it has one channel for each of the image, and the ascent starts at 0 and not at random.

    Uses the clean data it is given, 5% in ANP, or images that the model draws. Takes no evidence.
    Cost: ``(3 steps + 9 pruning_steps) batch_size``, the images and the looks. The ascent of
    :meth:`discover` does not enter the pruning, which has its own; the repair reports what it sees.

    Args:
        steps: of the ascent; 5 epochs of CIFAR-10 are 2,345.
        batch_size: 128 in both papers.
        relative: what is perturbed, and by which rule.
        optimizer: of the ascent.
        looks: how often :meth:`discover` draws samples.
        samples: it draws each time.
        pruning_steps: of SGD; 2,000 in ANP.
        generated: images, where no data are given.
    """

    changes_weights: ClassVar[bool] = True

    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4
    budget: float = 4.0
    relative: bool = False
    optimizer: Literal["adam", "sgd"] = "adam"
    looks: int = 2
    samples: int = 32
    pruning_steps: int = 100
    pruning_rate: float = 0.2
    pruning_budget: float = 0.4
    alpha: float = 0.2
    threshold: float = 0.2
    generated: int = 128
    sampling_steps: int = 50

    def __post_init__(self) -> None:
        check_least(self, steps=0, batch_size=1, samples=2, pruning_steps=0, generated=1)

    def most_evaluations(self) -> int:
        """What it costs at most, about; see :class:`backdrift.repair._base.Repair`."""
        images = self.generated * self.sampling_steps + 25 * self.looks * self.samples
        return images + (3 * self.steps + 9 * self.pruning_steps) * self.batch_size

    def __call__(
        self,
        model: DiffusionModel,
        evidence: Sequence[Candidate] = (),
        *,
        data: Tensor | None = None,
        seed: int,
        progress: Progress | None = None,
    ) -> Repaired:
        """See :class:`backdrift.repair._base.Repair`."""
        copied = working_copy(model)
        log = Log(self, seed, copied)
        images = self._images(copied, data, seed)
        found = self.discover(copied, data=images, seed=seed, progress=progress) if self.steps else ()
        log.spend(2 * self.steps * self.batch_size)
        pruned, channels = self._prune(copied, images, seed, progress)
        log.spend(6 * self.pruning_steps * self.batch_size)
        facts = {"channels pruned": float(pruned), "channels": float(channels)}
        if found:
            best = max(found, key=lambda d: d.collapse)
            facts |= {"collapse when perturbed": best.collapse, "at step": float(best.step)}
        ended = f"{pruned} of {channels} channels pruned"
        return Repaired(copied, None, log.record(ended, facts, 0 if data is None else len(data)))

    def discover(
        self,
        model: DiffusionModel,
        *,
        data: Tensor | None = None,
        seed: int,
        progress: Progress | None = None,
    ) -> tuple[Discovery, ...]:
        """The perturbation half: ``looks`` looks on the way, equally spaced, the last at the end.

        An ascent that leaves the numbers ends there, with a collapse of 0.
        """
        found: list[Discovery] = []
        images = self._images(model, data, seed)
        with model.frozen(), _gates(model.network, self.relative) as gates:
            kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
            optimizer = kind(gates.parameters(), lr=self.learning_rate)
            looks = {round((k + 1) * self.steps / self.looks) for k in range(self.looks)}
            for step in range(1, self.steps + 1):
                loss = _loss(model, images, self.batch_size, seed, "ascent", step)
                optimizer.zero_grad()
                (-loss).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(gates.parameters(), 1.0)
                optimizer.step()
                gates.hold(self.budget)
                now = float(loss.detach())
                if progress is not None:
                    progress(step, self.steps, f"perturbing, loss {now:.4f}")
                if step in looks or not math.isfinite(now):
                    found.append(self._look(model, images, step, now, seed))
                if not math.isfinite(now):
                    break
        return tuple(found)

    def _images(self, model: DiffusionModel, data: Tensor | None, seed: int) -> Tensor:
        check_data(data, model.sample_shape)
        if data is not None:
            return data.to(model.device)
        with model.frozen():
            return own_images(model, self.generated, self.sampling_steps, seed)

    @torch.no_grad()
    def _look(self, model: DiffusionModel, images: Tensor, step: int, loss: float, seed: int) -> Discovery:
        """Samples with x_0 clipped, as published, judged by whether they are one image."""
        clip = SamplingHook("clipping of x_0", clip_x0=True)
        drawn = draw(model, None, sampler="ddpm", steps=25, n=self.samples, seed=seed, hook=clip)
        if not bool(drawn.isfinite().all()):
            return Discovery(step, loss, torch.zeros(model.sample_shape), 0.0)
        judged: Drawn = Judge(self.samples // 2).judge(drawn, images)
        return Discovery(step, loss, judged.target, judged.hit_rate)

    def _prune(
        self, model: DiffusionModel, images: Tensor, seed: int, progress: Progress | None
    ) -> tuple[int, int]:
        """Sets channels to zero in place: how many, of how many."""
        with model.frozen(), _gates(model.network, relative=True, last=False) as gates:
            masks = list(gates.gains)
            optimizer = torch.optim.SGD(masks, lr=self.pruning_rate, momentum=0.9)
            for step in range(1, self.pruning_steps + 1):
                self._harden(model, gates, images, seed, step)
                worst = _gradients(_loss(model, images, self.batch_size, seed, "prune", step), masks)
                gates.clear()
                plain = _gradients(_loss(model, images, self.batch_size, seed, "prune", step), masks)
                for mask, a, b in zip(masks, plain, worst, strict=True):
                    mask.grad = self.alpha * a + (1 - self.alpha) * b
                optimizer.step()
                for mask in masks:
                    mask.data.clamp_(0, 1)
                if progress is not None:
                    progress(step, self.pruning_steps, f"pruning, least mask {gates.least():.2f}")
            cut = [(mask.detach() >= self.threshold).float() for mask in masks]
        for layer, keep in zip(gates.layers, cut, strict=True):
            layer.weight.data.mul_(keep.view(-1, 1, 1, 1).to(layer.weight))
        return int(sum((1 - keep).sum() for keep in cut)), sum(len(keep) for keep in cut)

    def _harden(self, model: DiffusionModel, gates: _Gates, images: Tensor, seed: int, step: int) -> None:
        """One signed step up, in what multiplies weights and biases beside the masks."""
        moved = [*gates.extra, *gates.shifts]
        loss = _loss(model, images, self.batch_size, seed, "prune", step)
        for value, slope in zip(moved, _gradients(loss, moved), strict=True):
            value.data.add_(self.pruning_budget * slope.sign())


class _Gates:
    """What multiplies and adds to the output of every convolution.

    Relative: ``(out - bias) (gain + extra) + bias shift``, shift from 1; else ``out gain + shift``, shift
    from 0. Gains are from 1, extra from 0.
    """

    def __init__(self, layers: list[nn.Conv2d], relative: bool) -> None:
        self.layers, self.relative = layers, relative
        self.gains, self.extra, self.shifts = [], [], []
        for layer in layers:
            ones = torch.ones(layer.out_channels, device=layer.weight.device)
            self.gains.append(ones.clone().requires_grad_(True))
            self.extra.append((0 * ones).requires_grad_(True))
            self.shifts.append((ones if relative else 0 * ones).requires_grad_(True))

    def parameters(self) -> list[Tensor]:
        """Those of the perturbation."""
        return [*self.gains, *self.shifts]

    def hold(self, budget: float) -> None:
        """Keeps them in the budget."""
        middle = 1.0 if self.relative else 0.0
        for value in self.parameters():
            value.data.clamp_(middle - budget, middle + budget)

    def clear(self) -> None:
        """Takes the perturbation away; the gains stay."""
        for extra, shift in zip(self.extra, self.shifts, strict=True):
            extra.data.zero_()
            shift.data.fill_(1.0 if self.relative else 0.0)

    def least(self) -> float:
        """The smallest gain."""
        return min(float(gain.detach().min()) for gain in self.gains)

    def output(self, number: int, out: Tensor) -> Tensor:
        """The gated output (B, C, H, W) of a layer."""
        layer = self.layers[number]
        gain, extra, shift = (part[number].view(-1, 1, 1) for part in (self.gains, self.extra, self.shifts))
        if not self.relative:
            return out * (gain + extra) + shift
        bias = torch.zeros_like(gain) if layer.bias is None else layer.bias.view(-1, 1, 1)
        return (out - bias) * (gain + extra) + bias * shift


@contextmanager
def _gates(network: nn.Module, relative: bool, last: bool = True) -> Iterator[_Gates]:
    """Gates on all convolutions while the block runs, subclasses among them; without the last of them."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if not layers:
        raise ValueError("the network has no convolution to prune")
    gates = _Gates(layers if last else layers[:-1], relative)

    def gate(number: int) -> torch.utils.hooks.RemovableHandle:
        return gates.layers[number].register_forward_hook(lambda _, __, out: gates.output(number, out))

    handles = [gate(number) for number in range(len(gates.layers))]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def _gradients(loss: Tensor, values: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)


def _loss(model: DiffusionModel, images: Tensor, rows: int, seed: int, name: str, step: int) -> Tensor:
    """The clean denoising loss of one batch, which (seed, name, step) alone decides."""
    stream = generator(seed, "anp", name, step)
    index = torch.randint(len(images), (rows,), generator=stream)
    t = torch.randint(len(model.schedule), (rows,), generator=stream).to(images.device)
    noise = torch.randn((rows, *model.sample_shape), generator=stream).to(images)
    x_t = model.schedule.add_noise(images[index.to(images.device)], noise, t)
    loss: Tensor = ((model(x_t, t) - noise) ** 2).mean()
    return loss
