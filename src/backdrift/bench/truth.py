"""An inverted trigger beside the true one: joined after the verdict, seen by no detector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.results import Evidence
from backdrift.core.trigger import TargetSet
from backdrift.groundtruth import Planted
from backdrift.inversion._base import cosine
from backdrift.metrics.draws import draw
from backdrift.metrics.rates import wilson


def distances(evidence: Evidence, planted: Planted) -> dict[str, float]:
    """L2 and cosine of the inverted trigger to r, and to E[R] where it is known."""
    tau = torch.from_numpy(evidence.trigger)
    found = {"l2_r": float((tau - planted.shift).norm()), "cos_r": cosine(tau, planted.shift)}
    found["norm_r"] = float(planted.shift.norm())
    if planted.mean_shift is not None:
        found["l2_mean"] = float((tau - planted.mean_shift).norm())
        found["cos_mean"] = cosine(tau, planted.mean_shift)
        found["norm_mean"] = float(planted.mean_shift.norm())
    return found


def success(model: DiffusionModel, evidence: Evidence, planted: Planted, images: Tensor) -> dict[str, Any]:
    """ASR of the inverted trigger, drawn as the true one's was for the record: sampler, steps, seeds.

    The rates of the true trigger and without one are those of the record. A trigger that was found
    without a gamma is drawn with that of the true one.

    Args:
        images: the clean training set (N, C, H, W), which hits of a set of targets are told from.
    """
    known = planted.record.measured
    sampler, steps = known["sampler"].removeprefix("the attack's own ").removesuffix(" steps").split(", ")
    n, seed = int(known["n"]), int(known["seed"])
    scale = None if evidence.scale is None else torch.from_numpy(evidence.scale)
    if scale is None:
        scale = planted.noise_scale
    way = Injection(torch.from_numpy(evidence.trigger), scale)
    drawn = draw(model, way, sampler=sampler, steps=int(steps), n=n, seed=seed)
    target = planted.target
    target = target.beside(images) if isinstance(target, TargetSet) else target
    hits = int(target.hits(model.decode(drawn)).sum())
    return {
        "asr_inverted": hits / n,
        "interval": wilson(hits, n),
        "asr_true": known["asr"],
        "rate_without_trigger": known["rate_without_trigger"],
        "n": n,
        "sampler": known["sampler"],
        "seed": seed,
    }
