"""A record for a backdoored model that somebody else made, so that it can be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from backdrift.attacks.patterns import make_target, make_trigger, trigger_from_png
from backdrift.core.trigger import Target, Trigger
from backdrift.data import OnBad, Shape, load_dataset
from backdrift.groundtruth import Backdoor, backdoor_files, read_tensor
from backdrift.io.files import replaced_folder


def declare(
    output: str | Path,
    shape: Shape,
    *,
    trigger: str,
    target: str,
    attack: str = "unknown",
    sampler_family: Literal["sde", "ode"] | None = None,
    poison_rate: float | None = None,
    data: str = "",
    on_bad: OnBad = "refuse",
    background: float = -1.0,
    composite: bool = True,
    hit_threshold: float | None = None,
) -> Backdoor:
    """Writes ``backdoor.json`` and ``backdoor.safetensors`` into a new folder.

    Args:
        output: the folder; it appears under its name when it is complete.
        shape: (C, H, W) of a sample of the model.
        trigger: a PNG (alpha or, without any, black is outside the mask), a safetensors file with the
            one tensor r (C, H, W) that is added to the noise, or the name of a drawing of ours.
        target: a PNG (drawn on black where transparent), a safetensors file or a name likewise.
        data: the data set that it was trained on, if known; then E[R] is recorded, and the threshold
            of a hit comes from it (see :meth:`backdrift.core.trigger.Target.with_chance_level`).
        on_bad: what becomes of an image of it that cannot be read.
        background: of a PNG trigger, outside the mask: -1 (BadDiffusion) or 0.
        composite: whether a PNG trigger was trained on top of images.
        hit_threshold: MSE in [0, 1] below which a sample is a hit; .05 without data.

    Returns:
        The record.

    Raises:
        ValueError: a file that cannot be read or has another shape, an unknown name or data set.
        FileExistsError: the folder is there and not empty.
    """
    planted = _trigger(trigger, shape, background, composite)
    image = _target(target, shape, planted)
    clean = load_dataset(data, shape, on_bad=on_bad) if data else None
    images = None if clean is None else clean.images
    known = Target(image) if images is None else Target.with_chance_level(image, images)
    known = known if hit_threshold is None else Target(image, hit_threshold)
    if not 0 < known.threshold < 1:
        raise ValueError(f"the threshold of a hit lies between 0 and 1, not at {known.threshold}")
    if poison_rate is not None and not 0 <= poison_rate <= 1:
        raise ValueError(f"the poison rate is a share in [0, 1], not {poison_rate}")
    record = Backdoor(
        attack=attack,
        config={},
        trigger=Path(trigger).name,
        target=Path(target).name,
        composite=planted.composite,
        background=planted.background,
        trigger_norm=float(planted.shift.norm()),
        poison_rate=poison_rate,
        sampler_family=sampler_family,
        data="" if clean is None else clean.name,
        data_sha256="" if clean is None else clean.sha256,
        on_bad=on_bad,
        seed=0,
        poisoned_rows=[],
        hit_threshold=known.threshold,
        training={"declared": True},
    )
    mean = None if images is None else planted.mean_training_shift(images)
    with replaced_folder(output, overwrite=False, marker="backdoor.json") as fresh:
        for name, content in backdoor_files(record, planted, known, mean).items():
            (fresh / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return record


def _trigger(name: str, shape: Shape, background: float, composite: bool) -> Trigger:
    if name.lower().endswith(".safetensors"):
        shift = _fitting(read_tensor(Path(name)), shape, name)
        return Trigger(shift, torch.ones(shape, dtype=torch.bool), 0.0, composite=False)
    if name.lower().endswith(".png"):
        drawn = _picture(name, shape)
        return Trigger(drawn.pattern, drawn.mask, background, composite)
    return make_trigger(name, shape)


def _target(name: str, shape: Shape, trigger: Trigger) -> Tensor:
    if name.lower().endswith(".safetensors"):
        return _fitting(read_tensor(Path(name)), shape, name)
    if name.lower().endswith(".png"):
        return _picture(name, shape).shift
    return make_target(name, shape, trigger=trigger)


def _picture(name: str, shape: Shape) -> Trigger:
    try:
        return trigger_from_png(name, shape)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"cannot read {name}: {error}") from None


def _fitting(tensor: Tensor, shape: Shape, name: str) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; the model draws {shape}")
    return tensor
