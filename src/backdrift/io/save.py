"""Writes a model as a stock diffusers pipeline folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import save_file
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.sampling import SNR
from backdrift.core.schedule import NoiseSchedule
from backdrift.io.codec import VqCodec
from backdrift.io.files import replaced_folder
from backdrift.io.labels import METADATA_KEY, NOTICE_KEY
from backdrift.io.latents import CODEC_FOLDER
from backdrift.io.weights import STANDARD_WEIGHTS


def save_pipeline(
    model: DiffusionModel,
    folder: str | Path,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    notice: str | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    overwrite: bool = False,
) -> Path:
    """Saves ``model`` so that ``DDPMPipeline.from_pretrained(folder)`` loads it.

    A variance exploding model becomes a ``ScoreSdeVePipeline``, a latent one an ``LDMPipeline``, with the
    scheduler that its samples are drawn by (DDIM).

    The folder appears under its name when it is complete. The scheduler samples without clipping,
    as everything here does: with it, a saved backdoor would not fire.

    Args:
        model: its network must be a ``UNet2DModel``, and a codec that of :mod:`backdrift.io.codec`.
        dtype: of the stored weights.
        notice: says that the model is backdoored; written into ``BACKDOORED.md``, the pipeline
            index and the metadata of the weights.
        extra_files: texts or bytes by plain file name, for example a model card.
        overwrite: replace an existing pipeline folder.

    Returns:
        The folder.

    Raises:
        ValueError: another kind of network, weights that overflow in ``dtype`` or are not finite,
            an extra file that is no plain name or already there.
        FileExistsError: the folder is there and not empty, and ``overwrite`` is not set or it is
            no pipeline folder.
    """
    network = model.network
    if not isinstance(network, UNet2DModel):
        raise ValueError(f"only a UNet2DModel can be saved, not {type(network).__name__}")
    parts: dict[str, UNet2DModel | VQModel] = {"unet": network}
    if isinstance(model.codec, VqCodec):
        parts[CODEC_FOLDER] = model.codec.network
    weights = {name: _weights(part, getattr(torch, dtype)) for name, part in parts.items()}
    files = dict(extra_files or {})
    if notice is not None:
        files.setdefault("BACKDOORED.md", notice + "\n")
    with replaced_folder(folder, overwrite=overwrite, marker="model_index.json") as fresh:
        pipeline = _pipeline(model, parts)
        pipeline.save_config(fresh)
        pipeline.scheduler.save_pretrained(fresh / "scheduler")
        metadata = {"format": "pt"}
        if notice is not None:
            metadata[METADATA_KEY] = notice
            _add_notice(fresh / "model_index.json", notice)
        for part, tensors in weights.items():
            parts[part].save_config(fresh / part)
            save_file(tensors, fresh / part / STANDARD_WEIGHTS, metadata)
            _in_order(metadata, fresh / part / STANDARD_WEIGHTS)
        for name, content in files.items():
            if name != Path(name).name or (fresh / name).exists():
                raise ValueError(f"{name!r} is no plain file name or is already in a pipeline")
            data = content if isinstance(content, bytes) else content.encode()
            (fresh / name).write_bytes(data)
    return Path(folder)


def _weights(network: UNet2DModel | VQModel, dtype: torch.dtype) -> dict[str, Tensor]:
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()
    }
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is not finite in {dtype}; nothing was saved")
    return weights


def _in_order(metadata: Mapping[str, str], path: Path) -> None:
    """Puts the metadata of a safetensors header in order: ``save_file`` writes them in any."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = {key: header["__metadata__"][key] for key in metadata}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))


def _pipeline(model: DiffusionModel, parts: Mapping[str, UNet2DModel | VQModel]) -> DiffusionPipeline:
    timesteps = len(model.schedule)
    if model.prediction_type == "score":
        # the tables come from these numbers by way of logarithms, so rounding brings them back
        first, last = (float(f"{float(model.schedule.levels[end]):.12g}") for end in (0, -1))
        levels = ScoreSdeVeScheduler(timesteps, snr=SNR, sigma_min=first, sigma_max=last)
        return ScoreSdeVePipeline(**parts, scheduler=levels)
    plain = NoiseSchedule.linear(timesteps)
    linear = torch.allclose(model.schedule.betas, plain.betas, rtol=1e-9, atol=0)
    latent = CODEC_FOLDER in parts
    scheduler = (DDIMScheduler if latent else DDPMScheduler)(
        num_train_timesteps=timesteps,
        trained_betas=None if linear else model.schedule.betas.tolist(),
        prediction_type=model.prediction_type,
        clip_sample=False,
    )
    return (LDMPipeline if latent else DDPMPipeline)(**parts, scheduler=scheduler)


def _add_notice(path: Path, notice: str) -> None:
    index = json.loads(path.read_text(encoding="utf-8"))
    index[NOTICE_KEY] = notice
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
