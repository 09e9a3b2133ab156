"""One training loop for clean, poisoned and repair training."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator

Progress = Callable[[int, int, str], None]
Batch = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Hook(Protocol):
    """Something that learns beside the network, one step of its own before every step of training."""

    def before_step(self, model: DiffusionModel, step: int) -> None:
        """Called with the network as it is; must leave its weights and their gradients alone."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state` returned."""
        ...


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
    """

    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warm_up: float = 0.05
    seed: int = 0
    checkpoint_every: int = 250
    run: str = ""


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
    return index, t, torch.randn((config.batch_size, *shape), generator=stream)


def train(
    model: DiffusionModel,
    rows: int,
    batch: Batch,
    config: TrainingConfig,
    *,
    hook: Hook | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Minimises ``mean (label - predicted noise)^2`` in place.

    Args:
        rows: how many rows there are to draw from.
        batch: ``(row indices, noise, t) -> (x_t, label)``, all with the batch in front.
        hook: what learns along, for example a trigger; its state is resumed too.
        state: folder of the resumable state; a run that finds one goes on from there.
        progress: called as ``progress(step, steps, text)`` about once a second.

    Returns:
        Cost and course: steps, seconds, images per second, the loss averaged over 20 windows.

    Raises:
        FloatingPointError: the loss is not finite.
        ValueError: ``state`` belongs to another configuration.
    """
    accelerator = Accelerator()
    network = model.network
    network.to(accelerator.device).train().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    first = _resume(network, optimizer, config, hook, state)
    prepared, optimizer = accelerator.prepare(network, optimizer)
    run = DiffusionModel(prepared, model.schedule, model.sample_shape, model.prediction_type)
    begun, shown, losses = time.monotonic(), 0.0, list[float]()
    for step in range(first, config.steps):
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        index, t, noise = draw(config, step, rows, len(model.schedule), model.sample_shape)
        index, t, noise = (part[mine].to(accelerator.device) for part in (index, t, noise))
        if hook is not None:
            hook.before_step(model, step)
        x_t, label = batch(index, noise, t)
        loss = ((label - run(x_t, t)) ** 2).mean()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is not finite at step {step}: lower the learning rate")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        now = time.monotonic()
        if progress is not None and (now - shown > 1 or step + 1 == config.steps):
            shown, recent = now, losses[-50:]
            progress(step + 1, config.steps, f"loss {sum(recent) / len(recent):.4f}")
        due = config.checkpoint_every and (step + 1) % config.checkpoint_every == 0
        if state is not None and due and accelerator.is_main_process:
            _save_state(network, optimizer, config, hook, step + 1, state)
    network.eval().requires_grad_(False)
    seconds = time.monotonic() - begun
    done = config.steps - first
    return {
        "steps": config.steps,
        "seconds": seconds,
        "images_per_second": done * config.batch_size / max(seconds, 1e-9),
        "loss": _windows(losses),
    }


def _windows(losses: list[float], count: int = 20) -> list[float]:
    size = max(1, len(losses) // count)
    return [sum(losses[i : i + size]) / size for i in range(0, len(losses) - size + 1, size)]


def _save_state(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    hook: Hook | None,
    step: int,
    folder: Path,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"w/{k}": v.contiguous() for k, v in network.state_dict().items()}
    for (name, parameter), slot in zip(
        network.named_parameters(), [optimizer.state[p] for p in network.parameters()], strict=True
    ):
        assert parameter.shape == slot["exp_avg"].shape
        tensors[f"m/{name}"], tensors[f"v/{name}"] = slot["exp_avg"], slot["exp_avg_sq"]
    if hook is not None:
        tensors |= {f"h/{name}": value.contiguous() for name, value in hook.state().items()}
    temporary = folder / "state.tmp"
    header = {"step": str(step), "config": json.dumps(asdict(config), sort_keys=True)}
    save_file(tensors, temporary, metadata=header)
    os.replace(temporary, folder / "state.safetensors")


def _resume(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    hook: Hook | None,
    folder: Path | None,
) -> int:
    if folder is None or not (folder / "state.safetensors").exists():
        return 0
    from safetensors import safe_open

    path = folder / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    if json.loads(header["config"]) != asdict(config):
        raise ValueError(f"{path} belongs to a run with another configuration: remove it to restart")
    tensors, step = load_file(path), int(header["step"])
    network.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("w/")})
    if hook is not None:
        hook.restore({k[2:]: v for k, v in tensors.items() if k.startswith("h/")})
    for name, parameter in network.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"m/{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"v/{name}"].to(parameter.device),
        }
    return step
