"""From a plan to a model: stock ``UNet2DModel``, weights read by ourselves, float32."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from backdrift.core.model import DiffusionModel, Origin
from backdrift.core.results import NotScanned
from backdrift.core.schedule import NoiseSchedule
from backdrift.io.build import fill, first_line, planned_network
from backdrift.io.codec import load_codec
from backdrift.io.errors import CheckpointError, NoSuchClass, NotScannable
from backdrift.io.networks import fix_frequencies
from backdrift.io.plan import LoadPlan
from backdrift.io.schedules import SchedulePlan
from backdrift.io.tensors import ContentHash, read_tensors
from backdrift.io.weights import WeightPlan

_LEAST_SIGNAL = 1e-12
_FINE_TO_COARSE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def load(
    plan: LoadPlan,
    candidate: WeightPlan | None = None,
    device: str = "cpu",
    label: int | None = None,
) -> DiffusionModel:
    """Builds the model, frozen and in evaluation mode.

    Args:
        plan: from :func:`backdrift.io.plan.plan`.
        candidate: which of the plan's sets of weights; the first by default.
        label: the class that a class-conditional model draws, in ``range(plan.classes)``.

    Raises:
        CheckpointError: weights that do not fit the config, are not finite, or changed meanwhile; a
            config that gives no working network.
        NotScannable: a noise schedule that leaves no signal, or classes and no ``label``.
        NoSuchClass: it is not in that range.
    """
    candidate = candidate or plan.candidates[0]
    check_label(plan, label)
    schedule = read_schedule(plan.schedule_config)
    network = _build(plan, candidate)
    digest = ContentHash()
    findings = fill(network, candidate, digest)
    network.to(device)
    network.eval().requires_grad_(False)
    codec = None
    if plan.codec is not None:
        codec = load_codec(plan.codec, digest, device)
        findings += codec.findings
    name = candidate.name if label is None else f"{candidate.name} (class {label})"
    return DiffusionModel(
        network if label is None else OneClass(network, label),
        schedule,
        plan.sample_shape,
        plan.schedule_config.prediction_type,
        origin=Origin(plan.path, name, digest.hexdigest(), plan.network_config, candidate.dtype, findings),
        codec=codec,
    )


class OneClass(nn.Module):
    """A class-conditional network that draws one class: ``network(x_t, t, class_labels=label)``."""

    def __init__(self, network: nn.Module, label: int) -> None:
        super().__init__()
        self.network, self.label = network, label

    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        """What the network returns for ``x_t`` of shape (B, C, H, W)."""
        labels = torch.full((len(x_t),), self.label, dtype=torch.long, device=x_t.device)
        return self.network(x_t, t, class_labels=labels)


def check_label(plan: LoadPlan, label: int | None) -> None:
    """Whether :func:`load` can take ``label``; raises as it does."""
    if label is None and plan.classes:
        raise NotScannable("the model is class-conditional; of the commands only scan covers it (--class)")
    if label is not None and not 0 <= label < plan.classes:
        many = f"classes 0 to {plan.classes - 1}" if plan.classes else "no classes"
        raise NoSuchClass(f"no class {label}: the model has {many}")


def read_schedule(plan: SchedulePlan) -> NoiseSchedule:
    """The float64 tables of a schedule.

    Raises:
        NotScannable: the last timestep is pure noise to within 1e-12.
    """
    if plan.kind == "exploding":
        schedule = NoiseSchedule.variance_exploding(plan.timesteps, *plan.levels)
    elif plan.trained_betas is not None:
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
        same = next((k for k in kept if _is_rounded(candidate, k)), None)
        if same is None:
            kept.append(candidate)
        else:
            why = f"same weights as {same.name}, stored in {candidate.dtype}"
            repeats.append(NotScanned(what=candidate.name, why=why))
    return tuple(kept), tuple(repeats)


def _is_rounded(coarse: WeightPlan, fine: WeightPlan) -> bool:
    """Whether ``coarse`` is ``fine`` in the same or a coarser dtype: nothing is in it alone."""
    if [(t.name, t.shape) for t in coarse.tensors] != [(t.name, t.shape) for t in fine.tensors]:
        return False
    for (_, low), (_, high) in zip(read_tensors(coarse), read_tensors(fine), strict=True):
        if _FINE_TO_COARSE.index(low.dtype) < _FINE_TO_COARSE.index(high.dtype):
            return False
        if not torch.equal(high.to(low.dtype), low):
            return False
    return True


def _build(plan: LoadPlan, candidate: WeightPlan) -> UNet2DModel:
    """The network on ``meta``, checked against the header and run once without any numbers."""
    blocks = len(plan.network_config.get("block_out_channels", range(4)))
    layers = plan.network_config.get("layers_per_block", 2)
    least = 8 * blocks * (2 * layers + 1)
    network = planned_network(lambda: _network(plan.network_config), "UNet", candidate, least)
    try:
        with torch.no_grad():
            images = torch.empty(1, *plan.sample_shape, device="meta")
            labels = torch.zeros(1, dtype=torch.long, device="meta") if plan.classes else None
            output = network(images, 0, class_labels=labels).sample
    except Exception as error:
        raise CheckpointError(f"the network does not run: {first_line(error)}", "BD404") from None
    if output.shape != images.shape:
        raise CheckpointError(
            f"the network turns images of {tuple(images.shape)} into {tuple(output.shape)}",
            "BD404",
        )
    return network


def _network(config: dict[str, Any]) -> UNet2DModel:
    network = UNet2DModel(**config)
    fix_frequencies(network)
    return network
