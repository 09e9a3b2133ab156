"""What a checkpoint is and what of it can be scanned, before any weight is read. Torch-free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdrift.core.results import NotScanned
from backdrift.io.configs import (
    METADATA_KEYS,
    SchedulePlan,
    check_scheduler_class,
    parse_network,
    parse_schedule,
)
from backdrift.io.errors import CheckpointError, NotScannable, printable, shown
from backdrift.io.header import Header, TensorInfo, read_header
from backdrift.io.inventory import Entry, Inventory, take_inventory
from backdrift.io.labels import is_declared
from backdrift.io.leftovers import PICKLES, leftovers
from backdrift.io.strict_json import read_object

MAX_PARAMETERS = 2_000_000_000
MAX_WEIGHT_BYTES = 16 << 30
MAX_WEIGHT_FILES = 16
STANDARD_WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")

# diffusers prefers an index to the single file beside it.
_SPLIT = re.compile(r"\.safetensors\.index[^/]*\.json\Z|-\d{5}-of-\d{5}[^/]*\.safetensors\Z")
_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TEXT_PARTS = ("text_encoder", "tokenizer", "prior_text_encoder")
_TEXT_PIPELINES = ("StableDiffusion", "Flux", "Kandinsky", "PixArt", "TextToImage", "AltDiffusion")
_IMAGES_ONLY = "backdrift scans unconditional image models (DDPMPipeline, DDIMPipeline, UNet2DModel)"


@dataclass(frozen=True)
class WeightPlan:
    """One weight file that can be scanned.

    Args:
        path: absolute, links resolved.
        name: relative to the checkpoint, safe to print.
        tensors: from the header, sorted by name.
        dtype: dtypes of the tensors, for example ``float16`` or ``float16+float32``.
        parameters: number of values in the file.
    """

    path: Path
    name: str
    tensors: tuple[TensorInfo, ...]
    dtype: str
    parameters: int


@dataclass(frozen=True)
class LoadPlan:
    """What :func:`backdrift.io.load.load` will build.

    Args:
        path: as the user named it.
        format: ``DDPMPipeline``, ``DDIMPipeline`` or ``UNet2DModel``.
        network_config: keyword arguments of ``UNet2DModel``.
        candidates: the weight files, the standard name first; at least one.
        not_scanned: what is left out or assumed, and why.
        declared: the checkpoint labels itself as backdoored. Nothing else depends on it.
        sample_shape: (C, H, W).
    """

    path: str
    format: str
    network_config: dict[str, Any]
    schedule_config: SchedulePlan
    candidates: tuple[WeightPlan, ...]
    not_scanned: tuple[NotScanned, ...]
    declared: bool
    sample_shape: tuple[int, int, int]

    @property
    def parameters(self) -> int:
        """Number of values in the first weight file."""
        return self.candidates[0].parameters


@dataclass(frozen=True)
class _Layout:
    format: str
    unet: str
    scheduler: Entry | None
    scheduler_class: str | None
    index: dict[str, Any]


def plan(path: str | Path) -> LoadPlan:
    """Looks at a checkpoint folder: configs and headers, no weights.

    Args:
        path: a diffusers pipeline folder, or the folder of a bare ``UNet2DModel``.

    Raises:
        NoSuchCheckpoint: the path does not exist.
        NotScannable: another kind of model, pickle weights only, or nothing to scan.
        CheckpointError: damaged or hostile files.
    """
    inventory = take_inventory(path)
    layout = _layout(inventory)
    config_name = _join(layout.unet, "config.json")
    config = _read(inventory, config_name)
    network_config, shape = parse_network(config, config_name)
    configs, schedule, assumed = [layout.index, config], SchedulePlan(), [_ASSUMED]
    used = {"model_index.json", config_name}
    if layout.scheduler is not None:
        configs.append(read_object(layout.scheduler.path, layout.scheduler.name))
        schedule = parse_schedule(configs[-1], layout.scheduler.name, layout.scheduler_class)
        used.add(layout.scheduler.name)
        assumed = []
    _check_learned_times(network_config, schedule, config_name)
    candidates, headers, why = _candidates(inventory, layout.unet)
    used |= {name for name in headers if name not in why}
    folders = {"", layout.unet, "scheduler"}
    return LoadPlan(
        path=str(path),
        format=layout.format,
        network_config=network_config,
        schedule_config=schedule,
        candidates=candidates,
        not_scanned=(*assumed, *leftovers(inventory, used, folders, why)),
        declared=is_declared(inventory, configs, (h.metadata for h in headers.values())),
        sample_shape=shape,
    )


_ASSUMED = NotScanned(
    what="noise schedule",
    why="no scheduler config: assumed linear betas 1e-4 to 0.02, 1000 timesteps, epsilon",
)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _read(inventory: Inventory, name: str) -> dict[str, Any]:
    entry = inventory.find(name)
    if entry is None:
        raise CheckpointError(f"{name} is missing; download the checkpoint again")
    return read_object(entry.path, name)


def _layout(inventory: Inventory) -> _Layout:
    if inventory.find("model_index.json"):
        index = _read(inventory, "model_index.json")
        kind, scheduler_class = _check_index(index)
        unet = "unet" if inventory.has_folder("unet") else ""
        folder = "scheduler" if inventory.has_folder("scheduler") else ""
        name = _join(folder, "scheduler_config.json")
        scheduler = inventory.find(name)
        if scheduler is None:
            raise CheckpointError(f"{name} is missing; download the checkpoint again")
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
            "want to run code of its own"
        )
    if kind not in PIPELINES:
        if any(part in index for part in _TEXT_PARTS) or any(t in kind for t in _TEXT_PIPELINES):
            raise NotScannable(
                f"{shown(kind)} is a text-to-image pipeline; those are not covered: {_IMAGES_ONLY}"
            )
        raise NotScannable(f"{shown(kind)} is not covered: {_IMAGES_ONLY}")
    for key in index:
        if key not in (*METADATA_KEYS, "unet", "scheduler"):
            raise CheckpointError(f"model_index.json: a {kind} has no part {shown(key)}")
    if "unet" not in index or "scheduler" not in index:
        raise CheckpointError("model_index.json must name a unet and a scheduler")
    if index["unet"] != ["diffusers", "UNet2DModel"]:
        raise CheckpointError(
            f"model_index.json: unet must be UNet2DModel of diffusers, not {shown(index['unet'])}; "
            "do not trust it"
        )
    part = index["scheduler"]
    if not isinstance(part, list) or len(part) != 2 or part[0] != "diffusers":
        raise CheckpointError(
            f"model_index.json: scheduler must be one of diffusers, not {shown(part)}; do not trust it"
        )
    return kind, check_scheduler_class(part[1], "model_index.json")


def _check_learned_times(config: dict[str, Any], schedule: SchedulePlan, name: str) -> None:
    if config.get("time_embedding_type") != "learned":
        return
    if (config.get("num_train_timesteps") or 0) < schedule.timesteps:
        raise CheckpointError(f"{name}: num_train_timesteps is below that of the scheduler")


def _candidates(
    inventory: Inventory, folder: str
) -> tuple[tuple[WeightPlan, ...], dict[str, Header], dict[str, str]]:
    """Weight files of the UNet; every header read; and why some are no candidates."""
    entries = inventory.inside(folder)
    split = next((e.name for e in entries if _SPLIT.search(e.name)), None)
    if split is not None:
        raise NotScannable(f"{shown(split)}: split weights are not covered; save them as one file")
    files = sorted(
        (e for e in entries if e.name.endswith(".safetensors")),
        key=lambda e: (e.name != _join(folder, STANDARD_WEIGHTS), not _stock(e), e.name),
    )
    if not files:
        raise _no_weights(entries, folder)
    if len(files) > MAX_WEIGHT_FILES:
        raise NotScannable(f"more than {MAX_WEIGHT_FILES} weight files; remove what is not needed")
    headers = {entry.name: read_header(entry.path, entry.name) for entry in files}
    shapes = {name: _shapes(header) for name, header in headers.items()}
    first = files[0]
    why = {
        entry.name: "not a name that diffusers loads, and other tensors than in " + printable(first.name)
        for entry in files[1:]
        if not _stock(entry) and shapes[entry.name] != shapes[first.name]
    }
    chosen = [_weight_plan(e, headers[e.name]) for e in files if e.name not in why]
    return tuple(chosen), headers, why


def _stock(entry: Entry) -> bool:
    return entry.name.rpartition("/")[2].startswith("diffusion_pytorch_model.")


def _shapes(header: Header) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in header.tensors}


def _weight_plan(entry: Entry, header: Header) -> WeightPlan:
    parameters = sum(math.prod(tensor.shape) for tensor in header.tensors)
    if parameters > MAX_PARAMETERS or header.size > MAX_WEIGHT_BYTES:
        raise CheckpointError(
            f"{shown(entry.name)} holds {parameters} values in {header.size} bytes; at most "
            f"{MAX_PARAMETERS} values and {MAX_WEIGHT_BYTES} bytes are scanned"
        )
    dtypes = sorted({_DTYPE_NAMES[tensor.dtype] for tensor in header.tensors})
    return WeightPlan(entry.path, printable(entry.name), header.tensors, "+".join(dtypes), parameters)


def _no_weights(entries: tuple[Entry, ...], folder: str) -> NotScannable:
    pickles = [e.name for e in entries if e.name.lower().endswith(PICKLES)]
    if pickles:
        return NotScannable(
            f"only pickle weights ({', '.join(map(shown, pickles[:3]))}), which backdrift never "
            "opens; ask the publisher for safetensors"
        )
    return NotScannable(f"no .safetensors weights in {folder or 'the folder'}; nothing to scan")
