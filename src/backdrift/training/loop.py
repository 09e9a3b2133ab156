"""The loop, on accelerate: one process or several, CPU or GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from backdrift.core.model import DiffusionModel
from backdrift.training.config import TrainingConfig, draw, learning_rate_at
from backdrift.training.course import Course, Progress
from backdrift.training.state import Hook, State

Batch = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
Watch = Callable[[DiffusionModel, int], None]


def train(
    model: DiffusionModel,
    rows: int,
    batch: Batch,
    config: TrainingConfig,
    *,
    hook: Hook | None = None,
    state: Path | None = None,
    log: Path | None = None,
    log_with: str | None = None,
    cpu: bool = False,
    watch: Watch | None = None,
    watch_at: Container[int] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Minimises ``mean (label - predicted noise)^2`` in place.

    Under ``accelerate launch`` the rows of a step are shared among the processes; the first one alone
    writes and shows anything.

    Args:
        rows: how many rows there are to draw from.
        batch: ``(row indices, noise, t) -> (x_t, label)``, all with the batch in front; ``(x_t, label, t)``
            where it chooses other timesteps, or another number of rows.
        hook: what learns along, for example a trigger; its state is resumed too.
        state: folder of the resumable state; a run that finds one goes on from there.
        log: JSONL file, see :class:`backdrift.training.course.Course`.
        log_with: a tracker of accelerate, ``tensorboard`` for example; it writes beside ``log``,
            into ``NAME.runs``.
        cpu: stay on the CPU where there is a GPU as well.
        watch: called as ``watch(model, step)`` at every checkpoint with the model as it would be if
            training ended there: averaged weights if they are, in evaluation mode.
        watch_at: other steps to call it after.
        progress: called as ``progress(step, steps, text)`` about once a second.

    Returns:
        Cost and course: steps, seconds, images per second, the loss averaged over 20 windows, and
        whether this is the main process.

    Raises:
        FloatingPointError: the loss is not finite.
        ValueError: ``state`` belongs to another configuration, the rows of a step cannot be shared
            equally, or the hardware lacks the precision.
    """
    accelerator = _accelerator(config, log, log_with, cpu)
    network = model.network
    network.to(accelerator.device).train().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    average = _average(network, config.ema) if config.ema else None
    saved = State(network, optimizer, average, hook, config, state)
    first, before = saved.resume()
    prepared, optimizer = accelerator.prepare(network, optimizer)
    run = DiffusionModel(prepared, model.schedule, model.sample_shape, model.prediction_type)
    course = Course(accelerator, log, first, before, config.batch_size, progress)
    for step in range(first, config.steps):
        if hook is not None:
            hook.before_step(model, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step)
        loss = _gradient(accelerator, run, rows, batch, config, step)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite at step {step}: lower the learning rate")
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update_parameters(network)
        course.add(step + 1, config.steps, loss, learning_rate_at(config, step))
        if accelerator.is_main_process:
            _checkpoint(model, saved, step + 1, course.seconds, watch, watch_at)
    if average is not None:
        network.load_state_dict(average.module.state_dict())
    network.eval().requires_grad_(False)
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    return {
        "steps": config.steps,
        "seconds": course.seconds,
        "images_per_second": course.pace,
        "loss": course.windows(),
        "main_process": accelerator.is_main_process,
    }


def _checkpoint(
    model: DiffusionModel,
    saved: State,
    done: int,
    seconds: float,
    watch: Watch | None,
    watch_at: Container[int],
) -> None:
    every = saved.config.checkpoint_every
    due = bool(every) and done % every == 0
    if due:
        saved.save(done, seconds)
    if watch is None or not (due or done in watch_at):
        return
    network, now = model.network, None
    if saved.average is not None:
        now = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(saved.average.module.state_dict())
    network.eval()
    watch(model, done)
    if now is not None:
        network.load_state_dict(now)
    network.train().requires_grad_(True)


def _accelerator(config: TrainingConfig, log: Path | None, log_with: str | None, cpu: bool) -> Accelerator:
    if log_with is not None and log is None:
        raise ValueError("a tracker writes beside the log: name a log as well")
    if log_with is not None and log_with not in _trackers():
        raise ValueError(f"no tracker {log_with!r} is installed; there: {', '.join(_trackers()) or 'none'}")
    name = "" if log is None else log.name.removesuffix(".jsonl")
    runs = None if log is None or log_with is None else log.with_name(f"{name}.runs")
    # a process remembers the precision and the device of its first run otherwise
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, cpu=cpu, log_with=log_with, project_dir=runs
    )
    parts = accelerator.num_processes * config.accumulate
    if config.batch_size % parts:
        raise ValueError(f"{config.batch_size} rows do not fall into {parts} equal parts")
    if log_with is not None:
        accelerator.init_trackers(name)
    return accelerator


def _trackers() -> list[str]:
    from accelerate.tracking import get_available_trackers

    return [str(tracker) for tracker in get_available_trackers()]


def _average(network: torch.nn.Module, decay: float) -> AveragedModel:
    def step(kept: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        n = float(count)
        return kept + (1 - min(decay, (1 + n) / (10 + n))) * (now - kept)

    average = AveragedModel(network, avg_fn=step)
    average.update_parameters(network)
    return average


def _gradient(
    accelerator: Accelerator,
    run: DiffusionModel,
    rows: int,
    batch: Batch,
    config: TrainingConfig,
    step: int,
) -> float:
    """Backward passes over this process's rows of a step; the mean loss."""
    index, t, noise = draw(config, step, rows, len(run.schedule), run.sample_shape)
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    parts = [part[mine].chunk(config.accumulate) for part in (index, t, noise)]
    total = 0.0
    for number, (i, at, eps) in enumerate(zip(*parts, strict=True)):
        last = number + 1 == config.accumulate
        with nullcontext() if last else accelerator.no_sync(run.network):
            i, at, eps = (part.to(accelerator.device) for part in (i, at, eps))
            x_t, label, *times = batch(i, eps, at)
            loss = ((label - run(x_t, *(times or (at,)))) ** 2).mean() / config.accumulate
            accelerator.backward(loss)
        total += float(loss.detach())
    return total
