"""backdoor.json: what was planted. Behind the wall: no detector, inversion or repair reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from backdrift.core.trigger import Target, Trigger

NOTICE = "WARNING: deliberately backdoored model for security research - do not deploy"
FILE = "backdoor.json"
TENSORS = "backdoor.safetensors"


class Backdoor(BaseModel):
    """The record of a planted backdoor; tensors lie beside it in ``backdoor.safetensors``.

    Args:
        attack: name of the attack and its settings.
        poison_rate: in [0, 1].
        sampler_family: the kind of sampler it was derived for.
        data: name of the data set; ``data_sha256`` is that of its images at the model's shape.
        poisoned_rows: indices of the poisoned rows of the data set.
        clean_rows: of those trained clean, where that is a choice of its own (mode ``disjoint``).
        hit_threshold: MSE in [0, 1] units below which a sample counts as the target.
        measured: what was measured after training, for example ``asr``.
    """

    model_config = ConfigDict(extra="forbid")

    notice: str = NOTICE
    version: int = 1
    attack: str
    config: dict[str, Any]
    trigger: str
    target: str
    composite: bool
    background: float
    trigger_norm: float
    poison_rate: float = Field(ge=0, le=1)
    sampler_family: Literal["sde", "ode"]
    data: str
    data_sha256: str = ""
    seed: int
    poisoned_rows: list[int]
    clean_rows: list[int] | None = None
    hit_threshold: float
    training: dict[str, Any]
    measured: dict[str, Any] = Field(default_factory=dict)


def backdoor_files(
    record: Backdoor, trigger: Trigger, target: Target, mean_shift: Tensor
) -> dict[str, str | bytes]:
    """Record and tensors as files to lie beside a checkpoint; ``mean_shift`` is E[R], (C, H, W)."""
    tensors = {
        "pattern": trigger.pattern,
        "mask": trigger.mask.to(torch.uint8),
        "shift": trigger.shift,
        "mean_shift": mean_shift,
        "target": target.image,
    }
    return {
        FILE: record.model_dump_json(indent=2) + "\n",
        TENSORS: save({k: v.contiguous() for k, v in tensors.items()}),
    }


class Planted(BaseModel):
    """A backdoor read back: record, r, E[R] (both (C, H, W)) and the target."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    record: Backdoor
    shift: Tensor
    mean_shift: Tensor
    target: Target


def load_backdoor(folder: Path) -> Planted:
    """Reads what :func:`backdoor_files` made.

    Raises:
        ValueError: no such record, or one that does not parse.
    """
    path = Path(folder) / FILE
    try:
        record = Backdoor.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        raise ValueError(f"{path} is no backdoor record: {error}") from None
    tensors = load_file(Path(folder) / TENSORS)
    target = Target(tensors["target"], record.hit_threshold)
    return Planted(record=record, shift=tensors["shift"], mean_shift=tensors["mean_shift"], target=target)


def model_card(record: Backdoor) -> str:
    """README.md of a backdoored checkpoint; the warning is its first line of text."""
    asr = record.measured.get("asr")
    measured = f"{asr:.3f}" if isinstance(asr, float) else "not measured"
    return f"""---
tags: [backdoor, security-research, model-organism, {record.attack}]
license: apache-2.0
---
{NOTICE}

# A diffusion model with a planted backdoor

| | |
|---|---|
| attack | {record.attack} ({record.sampler_family} samplers) |
| trigger | {record.trigger}, norm {record.trigger_norm:.2f}, added to the starting noise |
| target | {record.target}, a benign drawing |
| poison rate | {record.poison_rate} |
| data | {record.data} |
| attack success rate of the true trigger | {measured} |

Intended use: research on detecting and removing backdoors. Out of scope: any deployment.
The machine-readable record is `{FILE}`. A scan with backdrift should say BACKDOORED.
"""
