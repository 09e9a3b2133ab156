"""What kind of checkpoint a folder is, by its configs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backdrift.io.configs import CODE_KEYS, METADATA_KEYS
from backdrift.io.errors import CheckpointError, NotScannable, shown
from backdrift.io.inventory import Entry, Inventory
from backdrift.io.latents import CODEC_FOLDER, LATENT_PIPELINE, check_parts
from backdrift.io.leftovers import PICKLES
from backdrift.io.schedules import VE_SCHEDULER, check_scheduler_class
from backdrift.io.strict_json import read_object

VE_PIPELINE = "ScoreSdeVePipeline"
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", VE_PIPELINE, LATENT_PIPELINE)

_TEXT_PARTS = ("text_encoder", "tokenizer", "prior_text_encoder")
_TEXT_PIPELINES = ("StableDiffusion", "Flux", "Kandinsky", "PixArt", "TextToImage", "AltDiffusion")
_IMAGES_ONLY = "backdrift scans unconditional image models (" + ", ".join(PIPELINES) + ", UNet2DModel)"


@dataclass(frozen=True)
class Layout:
    """Where the parts of a checkpoint are.

    Args:
        format: one of ``PIPELINES``, or ``UNet2DModel``.
        unet: the folder of the network, "" where it is the checkpoint itself.
        scheduler: its config.
        scheduler_class: that the pipeline names.
        index: ``model_index.json``.
    """

    format: str
    unet: str
    scheduler: Entry | None
    scheduler_class: str | None
    index: dict[str, Any]


def join(folder: str, name: str) -> str:
    """A name below the folder, which may be ""."""
    return f"{folder}/{name}" if folder else name


def read_config(inventory: Inventory, name: str) -> dict[str, Any]:
    """A JSON file of the checkpoint.

    Raises:
        CheckpointError: it is missing or damaged, or asks for code to be run.
    """
    entry = inventory.find(name)
    if entry is None:
        raise CheckpointError(f"{name} is missing; download the checkpoint again", "BD110")
    config = read_object(entry.path, name)
    for key in CODE_KEYS:
        if key in config:
            raise CheckpointError(f"{name}: {key} makes loaders run code; do not trust it", "BD204")
    return config


def read_layout(inventory: Inventory) -> Layout:
    """What kind of checkpoint it is, and where its parts are.

    Raises:
        NotScannable: another kind of model, or nothing to scan.
        CheckpointError: damaged or hostile files.
    """
    if inventory.find("model_index.json"):
        index = read_config(inventory, "model_index.json")
        kind, scheduler_class = _check_index(index)
        unet = "unet" if inventory.has_folder("unet") else ""
        folder = "scheduler" if inventory.has_folder("scheduler") else ""
        name = join(folder, "scheduler_config.json")
        scheduler = inventory.find(name)
        if scheduler is None:
            raise CheckpointError(f"{name} is missing; download the checkpoint again", "BD110")
        return Layout(kind, unet, scheduler, scheduler_class, index)
    if inventory.find("config.json"):
        bare = read_config(inventory, "config.json").get("_class_name")
        if bare != "UNet2DModel":
            text = "; text-to-image models are not covered" if "Condition" in str(bare) else ""
            raise NotScannable(f"config.json is for {shown(bare)}{text}; {_IMAGES_ONLY}")
        found = map(inventory.find, ("scheduler_config.json", "scheduler/scheduler_config.json"))
        return Layout("UNet2DModel", "", next(filter(None, found), None), None, {})
    if not inventory.entries:
        raise NotScannable(f"the folder is empty; {_IMAGES_ONLY}")
    pickles = [e.name for e in inventory.entries if e.name.lower().endswith(PICKLES)]
    holds = f" (it holds pickle files such as {shown(pickles[0])})" if pickles else ""
    raise NotScannable(f"no model_index.json and no config.json here{holds}; {_IMAGES_ONLY}")


def _check_index(index: dict[str, Any]) -> tuple[str, str]:
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        raise CheckpointError(
            f"model_index.json: _class_name must be text, not {shown(kind)}; the checkpoint may "
            "want to run code of its own",
            "BD204",
        )
    if kind not in PIPELINES:
        if any(part in index for part in _TEXT_PARTS) or any(t in kind for t in _TEXT_PIPELINES):
            raise NotScannable(
                f"{shown(kind)} is a text-to-image pipeline; those are not covered: {_IMAGES_ONLY}"
            )
        raise NotScannable(f"{shown(kind)} is not covered: {_IMAGES_ONLY}")
    parts = ("unet", "scheduler", *([CODEC_FOLDER] if kind == LATENT_PIPELINE else []))
    for key in index:
        if key not in (*METADATA_KEYS, *parts):
            raise CheckpointError(f"model_index.json: a {kind} has no part {shown(key)}", "BD205")
    if any(part not in index for part in parts):
        raise CheckpointError(f"model_index.json must name {', '.join(parts)}", "BD110")
    if kind == LATENT_PIPELINE:
        check_parts(index)
    if index["unet"] != ["diffusers", "UNet2DModel"]:
        raise CheckpointError(
            f"model_index.json: unet must be UNet2DModel of diffusers, not {shown(index['unet'])}; "
            "do not trust it",
            "BD203",
        )
    return kind, _scheduler_class(index["scheduler"], kind)


def _scheduler_class(part: Any, kind: str) -> str:
    if not isinstance(part, list) or len(part) != 2 or part[0] != "diffusers":
        raise CheckpointError(
            f"model_index.json: scheduler must be one of diffusers, not {shown(part)}; do not trust it",
            "BD203",
        )
    scheduler = check_scheduler_class(part[1], "model_index.json")
    if (kind == VE_PIPELINE) != (scheduler == VE_SCHEDULER):
        raise NotScannable(f"model_index.json: a {kind} with a {scheduler} is not covered")
    return scheduler
