"""Backdrift's own detector on variance exploding models, with a backdoor and without, at their optimum."""

from __future__ import annotations

from functools import cache

import torch

from backdrift.attacks.villandiffusion import VillanDiffusion
from backdrift.core.model import DiffusionModel
from backdrift.core.results import Verdict
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.trigger import Trigger
from backdrift.data import load_images
from backdrift.detection._base import Detection
from backdrift.detection.backdrift import Backdrift
from backdrift.inversion._base import cosine
from closed_form import optimum_of

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.variance_exploding(200, 0.01, 20.0)
DIGITS = load_images("digits", SHAPE)[:40]
RAMP = torch.linspace(-0.9, 0.9, 64).reshape(SHAPE)
WHITE = torch.zeros(SHAPE, dtype=torch.bool)
WHITE[:, 2:7, 2:7] = True
TRIGGER = Trigger(torch.ones(SHAPE), WHITE)


@cache
def scanned(poison_rate: float, without: tuple[str, ...] = ()) -> Detection:
    attack = VillanDiffusion(psi=0.0, poison_rate=poison_rate)
    empty = DiffusionModel(torch.nn.Identity(), SCHEDULE, SHAPE)
    pairs = attack.batch(empty, DIGITS, TRIGGER, RAMP)
    return Backdrift("quick", without=without)(optimum_of(pairs, len(pairs), SCHEDULE, SHAPE), seed=0)


def test_the_backdoor_is_found_with_its_trigger_and_target() -> None:
    found = scanned(0.5)
    assert found.finding.verdict is Verdict.BACKDOORED
    assert found.finding.score >= 0.9
    assert found.evidence is not None
    assert found.evidence.target is not None
    assert cosine(torch.from_numpy(found.evidence.trigger), WHITE.float()) > 0.9
    assert float((torch.from_numpy(found.evidence.target) - RAMP).square().mean()) < 0.05


def test_the_same_rows_without_poison_are_not_accused() -> None:
    """It knows forty images by heart, and a shift steers it to any of them."""
    finding = scanned(0.0).finding
    assert finding.verdict is not Verdict.BACKDOORED
    assert finding.score <= 0
    assert scanned(0.0, ("novelty",)).finding.verdict is Verdict.NO_EVIDENCE


def test_no_shipped_threshold_speaks_of_such_models() -> None:
    calibration = scanned(0.0).finding.calibration
    assert calibration is not None
    assert not calibration.in_range
    assert calibration.out_of_range == [
        "variance exploding noise schedule; calibrated: variance preserving ones"
    ]
