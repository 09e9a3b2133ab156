"""From a plan to a model: stock ``UNet2DModel``, weights read by ourselves, float32."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from backdrift.core.model import DiffusionModel, Origin
from backdrift.core.results import NotScanned
from backdrift.core.schedule import NoiseSchedule
from backdrift.io.configs import SchedulePlan
from backdrift.io.errors import CheckpointError, NotScannable, shown
from backdrift.io.plan import LoadPlan, WeightPlan
from backdrift.io.tensors import ContentHash, read_tensors

_LEAST_SIGNAL = 1e-12
_FINE_TO_COARSE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Names of attention weights before diffusers 0.17, which diffusers still accepts.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))")


def load(plan: LoadPlan, candidate: WeightPlan | None = None, device: str = "cpu") -> DiffusionModel:
    """Builds the model, frozen and in evaluation mode.

    Args:
        plan: from :func:`backdrift.io.plan.plan`.
        candidate: which of the plan's weight files; the first by default.

    Raises:
        CheckpointError: weights that do not fit the config, are not finite, or changed meanwhile; a
            config that gives no working network.
        NotScannable: a noise schedule that leaves no signal.
    """
    candidate = candidate or plan.candidates[0]
    schedule = read_schedule(plan.schedule_config)
    network = _build(plan, candidate)
    sha256 = _fill(network, candidate)
    network.to(device)
    network.eval().requires_grad_(False)
    return DiffusionModel(
        network,
        schedule,
        plan.sample_shape,
        plan.schedule_config.prediction_type,
        origin=Origin(plan.path, candidate.name, sha256, plan.network_config, candidate.dtype),
    )


def read_schedule(plan: SchedulePlan) -> NoiseSchedule:
    """The float64 tables of a schedule.

    Raises:
        NotScannable: the last timestep is pure noise to within 1e-12.
    """
    if plan.trained_betas is not None:
        schedule = NoiseSchedule.from_betas(torch.tensor(plan.trained_betas, dtype=torch.float64))
    elif plan.kind == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(plan.timesteps)
    elif plan.kind == "scaled_linear":
        schedule = NoiseSchedule.scaled_linear(plan.timesteps, plan.beta_start, plan.beta_end)
    else:
        schedule = NoiseSchedule.linear(plan.timesteps, plan.beta_start, plan.beta_end)
    if float(schedule.alpha.min()) < _LEAST_SIGNAL:
        raise NotScannable("the noise schedule leaves no signal at its end; that is not covered")
    return schedule


def distinct_candidates(
    plan: LoadPlan,
) -> tuple[tuple[WeightPlan, ...], tuple[NotScanned, ...]]:
    """The weight files to scan, without those that only repeat another in a coarser dtype.

    Raises:
        CheckpointError: as :func:`load`.
    """
    kept: list[WeightPlan] = []
    repeats: list[NotScanned] = []
    for candidate in plan.candidates:
        same = next((k for k in kept if equal_after_rounding(plan, k, candidate)), None)
        if same is None:
            kept.append(candidate)
        else:
            why = f"same weights as {same.name}, stored in {candidate.dtype}"
            repeats.append(NotScanned(what=candidate.name, why=why))
    return tuple(kept), tuple(repeats)


def equal_after_rounding(plan: LoadPlan, a: WeightPlan, b: WeightPlan) -> bool:
    """Whether two weight files agree once both are cast to the coarser of their dtypes."""
    if [(t.name, t.shape) for t in a.tensors] != [(t.name, t.shape) for t in b.tensors]:
        return False
    for (_, left), (_, right) in zip(read_tensors(a), read_tensors(b), strict=True):
        dtype = max(left.dtype, right.dtype, key=_FINE_TO_COARSE.index)
        if not torch.equal(left.to(dtype), right.to(dtype)):
            return False
    return True


def _build(plan: LoadPlan, candidate: WeightPlan) -> UNet2DModel:
    """The network on ``meta``, checked against the header and run once without any numbers."""
    blocks = len(plan.network_config.get("block_out_channels", range(4)))
    layers = plan.network_config.get("layers_per_block", 2)
    least = 8 * blocks * (2 * layers + 1)
    if len(candidate.tensors) < least:
        raise CheckpointError(
            f"{shown(candidate.name)} holds {len(candidate.tensors)} tensors, but the config "
            f"describes a network of at least {least}; download the checkpoint again"
        )
    try:
        with torch.device("meta"), _quiet():
            network = UNet2DModel(**plan.network_config)
    except Exception as error:
        raise CheckpointError(f"the config describes no UNet2DModel: {_first_line(error)}") from None
    _compare(network, candidate)
    try:
        with torch.no_grad():
            images = torch.empty(1, *plan.sample_shape, device="meta")
            output = network(images, 0).sample
    except Exception as error:
        raise CheckpointError(f"the network does not run: {_first_line(error)}") from None
    if output.shape != images.shape:
        raise CheckpointError(
            f"the network turns images of {tuple(images.shape)} into {tuple(output.shape)}"
        )
    return network


def _first_line(error: Exception) -> str:
    return shown((str(error) or type(error).__name__).splitlines()[0], 200)


def _compare(network: nn.Module, candidate: WeightPlan) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    present = {_modern(tensor.name): tensor.shape for tensor in candidate.tensors}
    if len(present) != len(candidate.tensors):
        raise CheckpointError(f"{shown(candidate.name)} holds a tensor under two names")
    missing = sorted(wanted.keys() - present.keys())
    unexpected = sorted(present.keys() - wanted.keys())
    both = wanted.keys() & present.keys()
    mismatched = sorted(name for name in both if wanted[name] != present[name])
    problems = [
        f"{len(names)} {what} (first {shown(names[0])})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{shown(candidate.name)} does not fit the config: tensors {', '.join(problems)}"
        )


def _modern(name: str) -> str:
    old = _OLD_NAME.fullmatch(name)
    return f"{old[1]}{_OLD_NAMES[old[2]]}{old[3]}" if old else name


def _fill(network: nn.Module, candidate: WeightPlan) -> str:
    """Loads the weights as float32 and returns their content hash."""
    digest = ContentHash()
    state: dict[str, Tensor] = {}
    for info, stored in read_tensors(candidate):
        digest.add(info, stored)
        tensor = stored.to(torch.float32)
        if not bool(tensor.sum(dtype=torch.float64).isfinite()):
            raise CheckpointError(
                f"{shown(candidate.name)}: tensor {shown(info.name)} holds NaN or infinity; the "
                "model is broken"
            )
        state[_modern(info.name)] = tensor
    network.load_state_dict(state, strict=True, assign=True)
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        raise CheckpointError("the network needs tensors that the checkpoint does not hold")
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps diffusers from logging about a config that is refused a moment later."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
