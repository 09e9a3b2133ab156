"""The course of a run: a JSONL log always, trackers where asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

Progress = Callable[[int, int, str], None]

EVERY = 10


class Course:
    """Collects the loss of every step; writes a line of JSON every ``EVERY`` steps and at the end.

    A line has ``step``, ``loss`` (mean since the line before), ``learning_rate``, ``images_per_second``
    and ``seconds``. A resumed run drops the lines of steps that it does again.

    Args:
        log: the file, or None.
        first: steps that were done before, in ``before`` seconds.
        rows: per step.
        progress: called about once a second with the step and a text. The accelerator's trackers, if it
            has any, get the numbers of the log.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        log: Path | None,
        first: int,
        before: float,
        rows: int,
        progress: Progress | None,
    ) -> None:
        self.accelerator, self.before, self.rows = accelerator, before, rows
        self.log = log if accelerator.is_main_process else None
        self.progress = progress if accelerator.is_main_process else None
        self.shown = 0.0
        self.losses: list[float] = []
        self.since = 0
        self.begun = self.last = time.monotonic()
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            old = self.log.read_text(encoding="utf-8").splitlines() if first and self.log.exists() else []
            kept = [line for line in old if json.loads(line)["step"] <= first]
            self.log.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Spent on all steps, those before the run was resumed among them."""
        return self.before + time.monotonic() - self.begun

    @property
    def pace(self) -> float:
        """Images per second since this run began."""
        return len(self.losses) * self.rows / max(self.seconds - self.before, 1e-9)

    def text(self) -> str:
        """For a progress bar: loss of the last 50 steps, and images per second."""
        recent = self.losses[-50:]
        return f"loss {sum(recent) / len(recent):.4f}, {self.pace:.0f} images/s"

    def add(self, step: int, steps: int, loss: float, learning_rate: float) -> None:
        """The loss of step ``step`` of ``steps``, counted from 1."""
        self.losses.append(loss)
        self.since += 1
        if self.progress is not None and (time.monotonic() - self.shown > 1 or step == steps):
            self.shown = time.monotonic()
            self.progress(step, steps, self.text())
        if step % EVERY and step != steps:
            return
        now = time.monotonic()
        line: dict[str, Any] = {
            "step": step,
            "loss": sum(self.losses[-self.since :]) / self.since,
            "learning_rate": learning_rate,
            "images_per_second": self.since * self.rows / max(now - self.last, 1e-9),
            "seconds": self.seconds,
        }
        self.since, self.last = 0, now
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=step)

    def windows(self, count: int = 20) -> list[float]:
        """The loss averaged over ``count`` windows."""
        size = max(1, len(self.losses) // count)
        ends = range(0, len(self.losses) - size + 1, size)
        return [sum(self.losses[i : i + size]) / size for i in ends]
