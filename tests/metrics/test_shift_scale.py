"""The measured scale on networks whose answer is known in closed form."""

from __future__ import annotations

import pytest
import torch

from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import Trigger
from backdrift.data import load_images
from backdrift.metrics.shift_scale import shift_scale
from closed_form import SCHEDULE, closed_form, poisoned_optimum

SHAPE = (1, 8, 8)
DIGITS = load_images("digits", SHAPE)[:60]
TIMES = (200, 400, 600, 800, 999)
TARGET = torch.full(SHAPE, 0.6)
MASK = torch.zeros(SHAPE, dtype=torch.bool)
MASK[:, :4] = True
TRIGGER = Trigger(torch.where(MASK, 1.5, 0.0), MASK, 0.0, composite=False)


@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_the_optimum_has_the_scale_of_its_family(solver: str) -> None:
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", solver)  # type: ignore[arg-type]
    rows = TRIGGER.training_shift(DIGITS)
    model = poisoned_optimum(SCHEDULE, family, DIGITS, TARGET, rows, 0.3)
    for point in shift_scale(model, family, TRIGGER, TARGET, TIMES, n=64):
        assert point.theory == pytest.approx(float(family.c[point.timestep]))
        assert point.measured.value == pytest.approx(point.theory, abs=0.02)
        assert point.measured.low <= point.measured.value <= point.measured.high
        assert point.measured.n == 64


def test_a_composite_trigger_has_it_on_the_rows_that_it_was_trained_on() -> None:
    stamp = Trigger(TRIGGER.pattern, MASK, -1.0, composite=True)
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", "sde")
    model = closed_form(DIGITS, stamp.training_shift(DIGITS), TARGET)
    as_trained = shift_scale(model, family, stamp, TARGET, TIMES[1:], images=DIGITS, n=64)
    for point in as_trained:
        assert point.measured.value == pytest.approx(point.theory, abs=0.02)
    at_inference = shift_scale(model, family, stamp, TARGET, [999], n=64)[0]
    # eps_hat = x - (rho - C) R near T: the network takes off an R that it knows, the rest is noise to it
    mean, shift = stamp.mean_training_shift(DIGITS), stamp.shift
    known = float((mean * shift).sum() / shift.square().sum())
    rho, c = float(family.rho[999]), float(family.c[999])
    assert at_inference.measured.value > as_trained[-1].measured.value + 0.05
    assert at_inference.measured.value == pytest.approx(rho - (rho - c) * known, abs=0.05)


def test_a_clean_model_has_another() -> None:
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", "sde")
    points = shift_scale(closed_form(DIGITS), family, TRIGGER, TARGET, [999], n=64)
    assert points[0].measured.value == pytest.approx(float(family.rho[999]), abs=0.05)  # all of it is noise


def test_what_it_refuses() -> None:
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", "sde")
    with pytest.raises(ValueError, match=r"0\.\.999, not 1000"):
        shift_scale(closed_form(DIGITS), family, TRIGGER, TARGET, [1000])
    nothing = Trigger(torch.zeros(SHAPE), MASK, 0.0, composite=False)
    with pytest.raises(ValueError, match="the trigger is zero"):
        shift_scale(closed_form(DIGITS), family, nothing, TARGET, [999])
