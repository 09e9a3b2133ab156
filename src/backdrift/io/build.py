"""A network on ``meta``, checked against a header, then filled with weights that are read once."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from backdrift.core.static import StaticFinding
from backdrift.io.errors import CheckpointError, shown
from backdrift.io.tensors import ContentHash, read_tensors
from backdrift.io.weights import WeightPlan

Network = TypeVar("Network", bound=nn.Module)

# Names of attention weights before diffusers 0.17, which diffusers still accepts.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))")


def planned_network(make: Callable[[], Network], what: str, candidate: WeightPlan, least: int) -> Network:
    """The network that a config describes, on ``meta``, when the weights fit it.

    Args:
        make: builds it.
        what: it is to be, for a message.
        least: fewer tensors than any network of that config has; with fewer still nothing is built.

    Raises:
        CheckpointError: a config that gives no network, or other weights than its.
    """
    if len(candidate.tensors) < least:
        raise CheckpointError(
            f"{shown(candidate.name)} holds {len(candidate.tensors)} tensors, but the config "
            f"describes a network of at least {least}; download the checkpoint again",
            "BD307",
        )
    try:
        with torch.device("meta"), _quiet():
            network = make()
    except Exception as error:
        raise CheckpointError(f"the config describes no {what}: {first_line(error)}", "BD404") from None
    _compare(network, candidate)
    return network


def first_line(error: Exception) -> str:
    """What went wrong, safe to print."""
    return shown((str(error) or type(error).__name__).splitlines()[0], 200)


def _compare(network: nn.Module, candidate: WeightPlan) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    present = {_modern(tensor.name): tensor.shape for tensor in candidate.tensors}
    if len(present) != len(candidate.tensors):
        raise CheckpointError(f"{shown(candidate.name)} holds a tensor under two names", "BD307")
    missing = sorted(wanted.keys() - present.keys())
    both = wanted.keys() & present.keys()
    mismatched = sorted(name for name in both if wanted[name] != present[name])
    problems = [
        f"{len(names)} {what} (first {shown(names[0])})"
        for what, names in (
            ("missing", missing),
            ("of another shape", mismatched),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{shown(candidate.name)} does not fit the config: tensors {', '.join(problems)}",
            "BD307",
        )


def _modern(name: str) -> str:
    old = _OLD_NAME.fullmatch(name)
    return f"{old[1]}{_OLD_NAMES[old[2]]}{old[3]}" if old else name


def fill(network: nn.Module, candidate: WeightPlan, digest: ContentHash) -> tuple[StaticFinding, ...]:
    """Loads the weights as float32 and adds them to a hash.

    Returns:
        What is odd about them.

    Raises:
        CheckpointError: weights that are not finite, changed meanwhile or are not all there.
    """
    state: dict[str, Tensor] = {}
    wanted = network.state_dict().keys()
    extra: list[str] = []
    constant: list[str] = []
    for info, stored in read_tensors(candidate):
        digest.add(info, stored)
        if _modern(info.name) not in wanted:
            extra.append(info.name)
            continue
        tensor = stored.to(torch.float32)
        if not bool(tensor.sum(dtype=torch.float64).isfinite()):
            raise CheckpointError(
                f"{shown(candidate.name)}: tensor {shown(info.name)} holds NaN or infinity; the "
                "model is broken",
                "BD401",
            )
        # Biases and the scales of normalisations are constant before training, weights never are.
        if tensor.ndim > 1 and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            constant.append(info.name)
        state[_modern(info.name)] = tensor
    network.load_state_dict(state, strict=True, assign=True)
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        raise CheckpointError("the network needs tensors that the checkpoint does not hold", "BD307")
    return _odd(candidate.name, extra, constant)


def _odd(file: str, extra: list[str], constant: list[str]) -> tuple[StaticFinding, ...]:
    return tuple(
        StaticFinding.of(rule, file, f"{len(names)} tensors {what} (first {shown(names[0])})")
        for rule, what, names in (
            ("BD308", "that the network does not have", extra),
            ("BD402", "hold one value only", constant),
        )
        if names
    )


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
