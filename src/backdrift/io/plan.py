"""What a checkpoint is and what of it can be scanned, before any weight is read. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backdrift.core.results import Inspection, NotScanned
from backdrift.core.static import StaticFinding, WeightFacts
from backdrift.io.configs import (
    CODE_KEYS,
    METADATA_KEYS,
    parse_network,
)
from backdrift.io.errors import CheckpointError, NotScannable, printable, shown
from backdrift.io.inventory import Entry, Inventory, take_inventory
from backdrift.io.labels import is_declared
from backdrift.io.leftovers import PICKLES, leftovers
from backdrift.io.schedules import (
    VE_SCHEDULER,
    SchedulePlan,
    check_scheduler_class,
    parse_schedule,
)
from backdrift.io.static import static_findings
from backdrift.io.strict_json import read_object
from backdrift.io.weights import Bounds, Found, WeightPlan, find_weights, pickle_weights

VE_PIPELINE = "ScoreSdeVePipeline"
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", VE_PIPELINE)
EMA_FOLDER = "unet_ema"

_TEXT_PARTS = ("text_encoder", "tokenizer", "prior_text_encoder")
_TEXT_PIPELINES = ("StableDiffusion", "Flux", "Kandinsky", "PixArt", "TextToImage", "AltDiffusion")
_IMAGES_ONLY = "backdrift scans unconditional image models (" + ", ".join(PIPELINES) + ", UNet2DModel)"


@dataclass(frozen=True)
class LoadPlan:
    """What :func:`backdrift.io.load.load` will build.

    Args:
        path: as the user named it.
        format: one of ``PIPELINES``, or ``UNet2DModel``.
        network_config: keyword arguments of ``UNet2DModel``.
        candidates: the sets of weights, the standard name first; at least one.
        not_scanned: what is left out or assumed, and why.
        static: what the files show.
        declared: the checkpoint labels itself as backdoored. Nothing else depends on it.
        sample_shape: (C, H, W).
    """

    path: str
    format: str
    network_config: dict[str, Any]
    schedule_config: SchedulePlan
    candidates: tuple[WeightPlan, ...]
    not_scanned: tuple[NotScanned, ...]
    static: tuple[StaticFinding, ...]
    declared: bool
    sample_shape: tuple[int, int, int]

    @property
    def parameters(self) -> int:
        """Number of values in the first set of weights."""
        return self.candidates[0].parameters

    @property
    def classes(self) -> int:
        """How many classes the network is conditioned on; 0 when it takes none."""
        return self.network_config.get("num_class_embeds") or 0


@dataclass(frozen=True)
class _Layout:
    format: str
    unet: str
    scheduler: Entry | None
    scheduler_class: str | None
    index: dict[str, Any]


def plan(
    path: str | Path, bounds: Bounds | None = None, converted: Mapping[str, Path] | None = None
) -> LoadPlan:
    """Looks at a checkpoint: configs, headers and indexes, no weights.

    Args:
        path: a diffusers pipeline folder, the folder of a bare ``UNet2DModel``, or a safetensors file
            with its ``config.json`` beside it.
        bounds: the largest weights to accept.
        converted: see :func:`backdrift.io.weights.find_weights`.

    Raises:
        NoSuchCheckpoint: the path does not exist.
        NotScannable: another kind of model, pickle weights only, or nothing to scan.
        CheckpointError: damaged or hostile files.
    """
    bounds = bounds or Bounds()
    inventory = take_inventory(path)
    layout = _layout(inventory)
    config_name = _join(layout.unet, "config.json")
    config = _read(inventory, config_name)
    network_config, shape = parse_network(config, config_name)
    configs, schedule, assumed = [layout.index, config], SchedulePlan(), [_ASSUMED]
    used = {"model_index.json", config_name}
    if layout.scheduler is not None:
        configs.append(_read(inventory, layout.scheduler.name))
        schedule = parse_schedule(configs[-1], layout.scheduler.name, layout.scheduler_class)
        used.add(layout.scheduler.name)
        assumed = []
    _check_times(network_config, schedule, config_name)
    found = find_weights(inventory, layout.unet, bounds, converted)
    ema = _ema(inventory, layout, network_config, bounds)
    folders = {"", layout.unet, "scheduler"}
    used |= found.used
    if ema is not None:
        used |= ema.used
        folders.add(EMA_FOLDER)
    every = [found] if ema is None else [found, ema]
    metadata = [m for each in every for m in each.metadata]
    why = {name: reason for each in every for name, reason in each.why.items()}
    converting = [StaticFinding.of("BD502", printable(name), _CONVERTED) for name in converted or {}]
    return LoadPlan(
        path=str(path),
        format=layout.format,
        network_config=network_config,
        schedule_config=schedule,
        candidates=tuple(c for each in every for c in each.candidates),
        not_scanned=(*assumed, *leftovers(inventory, used, folders, why)),
        static=(*static_findings(inventory, used), *converting),
        declared=is_declared(inventory, configs, metadata),
        sample_shape=shape,
    )


def inspect(path: str | Path, bounds: Bounds | None = None) -> Inspection:
    """The answer of ``scan --static-only``; raises as :func:`plan`."""
    planned = plan(path, bounds)
    return Inspection(
        path=planned.path,
        format=planned.format,
        declared=planned.declared,
        weights=[
            WeightFacts(file=c.name, dtype=c.dtype, parameters=c.parameters) for c in planned.candidates
        ],
        sample_shape=planned.sample_shape,
        static=list(planned.static),
        not_measured=[*planned.not_scanned, _NO_BEHAVIOUR],
        exit_code=int(any(finding.level == "error" for finding in planned.static)),
    )


def unet_pickles(path: str | Path) -> dict[str, Path]:
    """The pickle files that would be the weights of the network, by name; raises as :func:`plan`."""
    inventory = take_inventory(path)
    return {e.name: e.path for e in pickle_weights(inventory, _layout(inventory).unet)}


def _ema(
    inventory: Inventory, layout: _Layout, network_config: dict[str, Any], bounds: Bounds
) -> Found | None:
    """The averaged weights that training scripts of diffusers leave beside ``unet``."""
    name = f"{EMA_FOLDER}/config.json"
    if layout.unet != "unet" or inventory.find(name) is None:
        return None
    config, _ = parse_network(_read(inventory, name), name)
    if config != network_config:
        return None
    found = find_weights(inventory, EMA_FOLDER, bounds)
    return replace(found, used=found.used | {name})


_ASSUMED = NotScanned(
    what="noise schedule",
    why="no scheduler config: assumed linear betas 1e-4 to 0.02, 1000 timesteps, epsilon",
)
_NO_BEHAVIOUR = NotScanned(what="behaviour", why="--static-only: the model was not run")
_CONVERTED = "pickle weights: converted to safetensors in a process of their own, and scanned"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _read(inventory: Inventory, name: str) -> dict[str, Any]:
    entry = inventory.find(name)
    if entry is None:
        raise CheckpointError(f"{name} is missing; download the checkpoint again", "BD110")
    config = read_object(entry.path, name)
    for key in CODE_KEYS:
        if key in config:
            raise CheckpointError(f"{name}: {key} makes loaders run code; do not trust it", "BD204")
    return config


def _layout(inventory: Inventory) -> _Layout:
    if inventory.find("model_index.json"):
        index = _read(inventory, "model_index.json")
        kind, scheduler_class = _check_index(index)
        unet = "unet" if inventory.has_folder("unet") else ""
        folder = "scheduler" if inventory.has_folder("scheduler") else ""
        name = _join(folder, "scheduler_config.json")
        scheduler = inventory.find(name)
        if scheduler is None:
            raise CheckpointError(f"{name} is missing; download the checkpoint again", "BD110")
        return _Layout(kind, unet, scheduler, scheduler_class, index)
    if inventory.find("config.json"):
        bare = _read(inventory, "config.json").get("_class_name")
        if bare != "UNet2DModel":
            text = "; text-to-image models are not covered" if "Condition" in str(bare) else ""
            raise NotScannable(f"config.json is for {shown(bare)}{text}; {_IMAGES_ONLY}")
        found = map(inventory.find, ("scheduler_config.json", "scheduler/scheduler_config.json"))
        return _Layout("UNet2DModel", "", next(filter(None, found), None), None, {})
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
    for key in index:
        if key not in (*METADATA_KEYS, "unet", "scheduler"):
            raise CheckpointError(f"model_index.json: a {kind} has no part {shown(key)}", "BD205")
    if "unet" not in index or "scheduler" not in index:
        raise CheckpointError("model_index.json must name a unet and a scheduler", "BD110")
    if index["unet"] != ["diffusers", "UNet2DModel"]:
        raise CheckpointError(
            f"model_index.json: unet must be UNet2DModel of diffusers, not {shown(index['unet'])}; "
            "do not trust it",
            "BD203",
        )
    part = index["scheduler"]
    if not isinstance(part, list) or len(part) != 2 or part[0] != "diffusers":
        raise CheckpointError(
            f"model_index.json: scheduler must be one of diffusers, not {shown(part)}; do not trust it",
            "BD203",
        )
    scheduler = check_scheduler_class(part[1], "model_index.json")
    if (kind == VE_PIPELINE) != (scheduler == VE_SCHEDULER):
        raise NotScannable(f"model_index.json: a {kind} with a {scheduler} is not covered")
    return kind, scheduler


def _check_times(config: dict[str, Any], schedule: SchedulePlan, name: str) -> None:
    kind = config.get("time_embedding_type", "positional")
    exploding = schedule.kind == "exploding"
    if exploding and kind == "learned":
        raise NotScannable(f"{name}: learned time embeddings of noise levels are not covered")
    if not exploding and kind == "fourier":
        raise NotScannable(
            f"{name}: fourier time embeddings are covered with a {VE_SCHEDULER} only; a bare network needs "
            "its scheduler_config.json"
        )
    if kind != "learned":
        return
    if (config.get("num_train_timesteps") or 0) < schedule.timesteps:
        raise CheckpointError(f"{name}: num_train_timesteps is below that of the scheduler", "BD206")
