"""What a checkpoint is and what of it can be scanned, before any weight is read. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backdrift.core.results import Inspection, NotScanned
from backdrift.core.static import StaticFinding, WeightFacts
from backdrift.io.configs import (
    parse_network,
)
from backdrift.io.errors import CheckpointError, NotScannable, printable
from backdrift.io.inventory import Inventory, take_inventory
from backdrift.io.labels import is_declared
from backdrift.io.latents import (
    CODEC_CONFIG,
    CODEC_FOLDER,
    LATENT_PIPELINE,
    CodecPlan,
    plan_codec,
)
from backdrift.io.layout import Layout, join, read_config, read_layout
from backdrift.io.leftovers import leftovers
from backdrift.io.schedules import (
    VE_SCHEDULER,
    SchedulePlan,
    parse_schedule,
)
from backdrift.io.static import static_findings
from backdrift.io.weights import Bounds, Found, WeightPlan, find_weights, pickle_weights

EMA_FOLDER = "unet_ema"


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
        sample_shape: (C, H, W) of what the denoiser draws: latents where there is a ``codec``.
        codec: the VQ-VAE of an ``LDMPipeline``.
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
    codec: CodecPlan | None = None

    @property
    def parameters(self) -> int:
        """Number of values in the first set of weights."""
        return self.candidates[0].parameters

    @property
    def classes(self) -> int:
        """How many classes the network is conditioned on; 0 when it takes none."""
        return self.network_config.get("num_class_embeds") or 0

    def of_pixels(self, command: str) -> LoadPlan:
        """This plan, for a command that does not cover latent models.

        Raises:
            NotScannable: it is of one.
        """
        if self.codec is not None:
            raise NotScannable(f"{command} does not cover latent models ({self.format}); scan does")
        return self


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
    layout = read_layout(inventory)
    config_name = join(layout.unet, "config.json")
    config = read_config(inventory, config_name)
    network_config, shape = parse_network(config, config_name)
    configs, schedule, assumed = [layout.index, config], SchedulePlan(), [_ASSUMED]
    used = {"model_index.json", config_name}
    if layout.scheduler is not None:
        configs.append(read_config(inventory, layout.scheduler.name))
        schedule = parse_schedule(configs[-1], layout.scheduler.name, layout.scheduler_class)
        used.add(layout.scheduler.name)
        assumed = []
    _check_times(network_config, schedule, config_name)
    found = find_weights(inventory, layout.unet, bounds, converted)
    ema = _ema(inventory, layout, network_config, bounds)
    denoisers = [found] if ema is None else [found, ema]
    folders = {"", layout.unet, "scheduler"} | (set() if ema is None else {EMA_FOLDER})
    codec, every = None, denoisers
    if layout.format == LATENT_PIPELINE:
        configs.append(read_config(inventory, CODEC_CONFIG))
        codec, decoding = plan_codec(inventory, configs[-1], shape, found, bounds, converted)
        every = [*denoisers, decoding]
        folders.add(CODEC_FOLDER)
    used = used.union(*(each.used for each in every))
    metadata = [m for each in every for m in each.metadata]
    why = {name: reason for each in every for name, reason in each.why.items()}
    converting = [StaticFinding.of("BD502", printable(name), _CONVERTED) for name in converted or {}]
    return LoadPlan(
        path=str(path),
        format=layout.format,
        network_config=network_config,
        schedule_config=schedule,
        candidates=tuple(c for each in denoisers for c in each.candidates),
        not_scanned=(*assumed, *leftovers(inventory, used, folders, why)),
        static=(*static_findings(inventory, used), *converting),
        declared=is_declared(inventory, configs, metadata),
        sample_shape=shape,
        codec=codec,
    )


def inspect(path: str | Path, bounds: Bounds | None = None) -> Inspection:
    """The answer of ``scan --static-only``; raises as :func:`plan`."""
    planned = plan(path, bounds)
    return Inspection(
        path=planned.path,
        format=planned.format,
        declared=planned.declared,
        weights=[
            WeightFacts(file=c.name, dtype=c.dtype, parameters=c.parameters)
            for c in (*planned.candidates, *([planned.codec.weights] if planned.codec else []))
        ],
        sample_shape=planned.sample_shape,
        static=list(planned.static),
        not_measured=[*planned.not_scanned, _NO_BEHAVIOUR],
        exit_code=int(any(finding.level == "error" for finding in planned.static)),
    )


def check_layout(path: str | Path) -> None:
    """Whether the configs of a folder are those of a model that is covered; raises as :func:`plan`."""
    inventory = take_inventory(path)
    name = join(read_layout(inventory).unet, "config.json")
    parse_network(read_config(inventory, name), name)


def network_pickles(path: str | Path) -> dict[str, Path]:
    """The pickle files that would be weights of the model, by name; raises as :func:`plan`."""
    inventory = take_inventory(path)
    layout = read_layout(inventory)
    folders = [layout.unet, *([CODEC_FOLDER] if layout.format == LATENT_PIPELINE else [])]
    return {e.name: e.path for folder in folders for e in pickle_weights(inventory, folder)}


def _ema(
    inventory: Inventory, layout: Layout, network_config: dict[str, Any], bounds: Bounds
) -> Found | None:
    """The averaged weights that training scripts of diffusers leave beside ``unet``."""
    name = f"{EMA_FOLDER}/config.json"
    if layout.unet != "unet" or inventory.find(name) is None:
        return None
    config, _ = parse_network(read_config(inventory, name), name)
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
