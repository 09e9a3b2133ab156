"""backdoor.json: what was planted. Behind the wall: no detector, inversion or repair reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from backdrift.core.injection import Injection
from backdrift.core.trigger import Target, TargetSet, Trigger
from backdrift.data import ImageSet, OnBad, Shape, load_dataset

NOTICE = "WARNING: deliberately backdoored model for security research - do not deploy"
FILE = "backdoor.json"
TENSORS = "backdoor.safetensors"


class Backdoor(BaseModel):
    """The record of a planted backdoor; tensors lie beside it in ``backdoor.safetensors``.

    Args:
        attack: name of the attack and its settings.
        poison_rate: in [0, 1]; None if nobody knows it.
        sampler_family: the kind of sampler it was derived for; None if nobody knows it.
        data: name of the data set; ``data_sha256`` is that of its images at the model's shape.
        on_bad: what became of an image of it that could not be read.
        poisoned_rows: indices of the poisoned rows of the data set.
        clean_rows: of those trained clean, where that is a choice of its own (mode ``disjoint``).
        hit_threshold: MSE in [0, 1] units below which a sample counts as the target; None where the
            target is a set of images (:class:`backdrift.core.trigger.TargetSet`).
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
    poison_rate: float | None = Field(ge=0, le=1)
    sampler_family: Literal["sde", "ode"] | None
    data: str
    data_sha256: str = ""
    on_bad: OnBad = "refuse"
    seed: int
    poisoned_rows: list[int]
    clean_rows: list[int] | None = None
    hit_threshold: float | None
    training: dict[str, Any]
    measured: dict[str, Any] = Field(default_factory=dict)


def backdoor_files(
    record: Backdoor,
    trigger: Trigger,
    target: Target | TargetSet,
    mean_shift: Tensor | None,
    noise_scale: Tensor | None = None,
) -> dict[str, str | bytes]:
    """Record and tensors as files to lie beside a checkpoint.

    Args:
        mean_shift: E[R], (C, H, W); None if the data are not known.
        noise_scale: gamma, (C, H, W), of an attack with a sampler of its own.
    """
    tensors = {
        "pattern": trigger.pattern,
        "mask": trigger.mask.to(torch.uint8),
        "shift": trigger.shift,
        "target": target.image if isinstance(target, Target) else target.images,
    }
    if mean_shift is not None:
        tensors["mean_shift"] = mean_shift
    if noise_scale is not None:
        tensors["noise_scale"] = noise_scale
    return {
        FILE: record.model_dump_json(indent=2) + "\n",
        TENSORS: save({k: v.contiguous() for k, v in tensors.items()}),
    }


class Planted(BaseModel):
    """A backdoor read back: record, r, E[R] if known, gamma if not 1; trigger and target."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    record: Backdoor
    shift: Tensor
    mean_shift: Tensor | None
    noise_scale: Tensor | None = None
    trigger: Trigger
    target: Target | TargetSet

    @property
    def injection(self) -> Injection:
        """How the trigger enters the victim's sampler."""
        return Injection(self.shift, self.noise_scale)

    def dataset(self, shape: Shape) -> ImageSet:
        """The clean training set at (C, H, W), read as it was for the training.

        Raises:
            ValueError: see :func:`backdrift.data.load_dataset`.
        """
        return load_dataset(self.record.data, shape, on_bad=self.record.on_bad)


def load_backdoor(path: Path) -> Planted:
    """Reads what :func:`backdoor_files` made.

    Args:
        path: the record, or the folder that it lies in; the tensors lie beside it.

    Raises:
        ValueError: no such record, or one that does not parse.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        record = Backdoor.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(
            f"{path} is no backdoor record: no such file; backdrift declare writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no backdoor record: {_reason(error)}") from None
    try:
        tensors = load_file(path.with_name(TENSORS))
        pattern, mask = tensors["pattern"], tensors["mask"].bool()
        trigger = Trigger(pattern, mask, record.background, record.composite)
        target = _target(tensors["target"], record.hit_threshold)
        shift = tensors["shift"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path.with_name(TENSORS)} does not go with its record: {error}") from None
    known = {name: tensors.get(name) for name in ("mean_shift", "noise_scale")}
    return Planted(record=record, shift=shift, trigger=trigger, target=target, **known)


def _target(image: Tensor, threshold: float | None) -> Target | TargetSet:
    if threshold is None:
        return TargetSet(image)
    if image.ndim != 3:
        raise ValueError(f"a target with a hit threshold is one image, not {tuple(image.shape)}")
    return Target(image, threshold)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"
    return str(error)


def read_tensor(path: Path) -> Tensor:
    """The one tensor (C, H, W) of a safetensors file, float32.

    Raises:
        ValueError: no such file, several tensors, another shape, or values that are not finite.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if len(tensors) != 1:
        raise ValueError(f"{path} holds {len(tensors)} tensors; give a file with one")
    (tensor,) = tensors.values()
    if tensor.ndim != 3 or not bool(tensor.isfinite().all()):
        raise ValueError(f"{path}: need finite values of shape (C, H, W), not {tuple(tensor.shape)}")
    return tensor.float()


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
| attack | {record.attack} ({record.sampler_family or "unknown"} samplers) |
| trigger | {record.trigger}, norm {record.trigger_norm:.2f}, added to the starting noise |
| target | {record.target} |
| poison rate | {record.poison_rate} |
| data | {record.data} |
| attack success rate of the true trigger | {measured} |

Intended use: research on detecting and removing backdoors. Out of scope: any deployment.
The machine-readable record is `{FILE}`. A scan with backdrift should say BACKDOORED.
"""
