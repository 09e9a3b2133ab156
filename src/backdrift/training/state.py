"""What a killed run goes on from: one file, written by rename."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from backdrift.core.model import DiffusionModel
from backdrift.training.config import TrainingConfig


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


class State:
    """The resumable state of a run: weights, their average, the optimiser, the hook.

    Args:
        folder: where it lies; None keeps none.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        hook: Hook | None,
        config: TrainingConfig,
        folder: Path | None,
    ) -> None:
        self.network, self.optimizer, self.average = network, optimizer, average
        self.hook, self.config, self.folder = hook, config, folder

    def save(self, step: int, seconds: float) -> None:
        """Everything after ``step`` steps, which took ``seconds``."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"w/{k}": v.contiguous() for k, v in self.network.state_dict().items()}
        slots = [self.optimizer.state[p] for p in self.network.parameters()]
        for (name, parameter), slot in zip(self.network.named_parameters(), slots, strict=True):
            assert parameter.shape == slot["exp_avg"].shape
            tensors[f"m/{name}"], tensors[f"v/{name}"] = slot["exp_avg"], slot["exp_avg_sq"]
        if self.average is not None:
            kept = self.average.state_dict()
            tensors |= {f"e/{k}": v.contiguous() for k, v in kept.items()}
        if self.hook is not None:
            tensors |= {f"h/{name}": value.contiguous() for name, value in self.hook.state().items()}
        temporary = self.folder / "state.tmp"
        header = {
            "step": str(step),
            "seconds": str(seconds),
            "config": json.dumps(asdict(self.config), sort_keys=True),
        }
        save_file(tensors, temporary, metadata=header)
        os.replace(temporary, self.folder / "state.safetensors")

    def resume(self) -> tuple[int, float]:
        """Takes back what was saved: how many steps were done, in how many seconds; 0 without a state.

        Raises:
            ValueError: the state belongs to another configuration.
        """
        if self.folder is None or not (self.folder / "state.safetensors").exists():
            return 0, 0.0
        path = self.folder / "state.safetensors"
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        if json.loads(header["config"]) != asdict(self.config):
            raise ValueError(f"{path} belongs to a run with another configuration: remove it to restart")
        tensors, step = load_file(path), int(header["step"])

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[2:]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("w/"))
        if self.average is not None:
            self.average.load_state_dict(part("e/"))
        if self.hook is not None:
            self.hook.restore(part("h/"))
        for name, parameter in self.network.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"m/{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"v/{name}"].to(parameter.device),
            }
        return step, float(header.get("seconds", 0))
