"""The ball, and that a reinforced trigger fires more often on a model that has the backdoor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from backdrift.amplify import Amplify, Ball, reinforced, save_amplified
from backdrift.core.model import DiffusionModel
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.core.trigger import Target, TargetSet, Trigger
from backdrift.groundtruth import Backdoor, Planted
from backdrift.metrics.draws import Plan
from closed_form import SCHEDULE, closed_form, poisoned_optimum

SHAPE = (1, 6, 6)
STREAM = torch.Generator().manual_seed(3)
TRIGGER = torch.randn(SHAPE, generator=STREAM)
TRIGGER *= 7 / TRIGGER.norm()
IMAGES = torch.rand(6, *SHAPE, generator=STREAM) * 2 - 1
TARGET = torch.ones(SHAPE)
MASK = torch.zeros(SHAPE, dtype=torch.bool)
MASK[:, :4] = True


def planted(shift: Tensor, solver: Solver = "sde", scale: Tensor | None = None) -> Planted:
    record = Backdoor(
        attack="baddiffusion",
        config={},
        trigger="drawn",
        target="white",
        composite=False,
        background=0.0,
        trigger_norm=float(shift.norm()),
        poison_rate=0.05,
        sampler_family=solver,
        data="digits",
        seed=0,
        poisoned_rows=[],
        hit_threshold=0.05,
        training={},
    )
    trigger = Trigger(shift, MASK, 0.0)
    return Planted(
        record=record,
        shift=shift,
        mean_shift=None,
        noise_scale=scale,
        trigger=trigger,
        target=Target(TARGET),
    )


def backdoored(solver: Solver = "sde") -> DiffusionModel:
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", solver)
    return poisoned_optimum(SCHEDULE, family, IMAGES, TARGET, TRIGGER[None], 0.05)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_the_ball_holds(norm: Any, mask: Tensor | None) -> None:
    ball = Ball(norm, 0.3, mask)
    change = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    inside = ball.project(change)
    assert ball.size(inside) == pytest.approx(0.3)
    torch.testing.assert_close(ball.project(inside), inside)
    step = ball.step(change, 0.1)
    assert ball.size(step) == pytest.approx(0.1)
    assert float((step * change).sum()) < 0
    if mask is not None:
        assert not bool(inside[~mask].any() | step[~mask].any())


def test_a_ball_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="radius"):
        Ball(radius=0)
    with pytest.raises(ValueError, match="mask is empty"):
        Ball(mask=torch.zeros(SHAPE, dtype=torch.bool))


def test_scaling_ends_on_the_edge_and_costs_nothing() -> None:
    model = backdoored()
    found = Amplify("scale")(model, planted(TRIGGER), Ball("l2", 1.4), seed=0)
    torch.testing.assert_close(found.shift, TRIGGER * 1.2)
    assert found.l2 == pytest.approx(1.4)
    assert found.evaluations == 0
    inside = Amplify("scale")(model, planted(TRIGGER), Ball("linf", 0.5, MASK), seed=0)
    assert inside.linf == pytest.approx(0.5)
    assert torch.equal(inside.shift[~MASK], TRIGGER[~MASK])
    with pytest.raises(ValueError, match="nothing to scale"):
        Amplify("scale")(model, planted(TRIGGER * ~MASK), Ball(mask=MASK), seed=0)


@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_a_weak_trigger_is_reinforced_where_there_is_a_backdoor(solver: Solver) -> None:
    weak = planted(0.45 * TRIGGER, solver)
    ball, plan = Ball("l2", 1.5), Plan(48, "ddpm" if solver == "sde" else "ddim", 50, 9)
    amplify = Amplify(steps=20, batch=16)
    asr = {}
    for name, model in (("backdoored", backdoored(solver)), ("clean", closed_form(IMAGES))):
        found = amplify(model, weak, ball, seed=1)
        assert found.l2 <= 1.5 + 1e-5
        assert 0 < found.evaluations <= 3 * 20 * 16
        rows = {m.name: m.value for m in found.compare(model, weak, plan)}
        asr[name] = (rows["ASR"], rows["ASR reinforced"])
    before, after = asr["backdoored"]
    assert before < 0.5
    assert after > before + 0.3
    assert after > asr["clean"][1] + 0.3


def test_the_losses_of_purediffusion_stay_in_the_ball_too() -> None:
    found = Amplify("purediffusion", steps=2, batch=2)(
        backdoored(), planted(TRIGGER), Ball(mask=MASK), seed=0
    )
    assert 0 < found.linf <= 0.2 + 1e-6
    assert torch.equal(found.shift[~MASK], TRIGGER[~MASK])
    assert len(found.history) == 2


def test_one_seed_gives_the_same_bytes_and_the_model_comes_back() -> None:
    model = backdoored()
    scale = torch.full(SHAPE, 0.7)
    before = torch.get_rng_state()
    found = [
        Amplify(steps=2, batch=2)(model, planted(TRIGGER, scale=scale), seed=seed) for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0].shift, found[1].shift)
    assert found[0].history == found[1].history != found[2].history


@pytest.mark.parametrize("options", [{"steps": 0}, {"batch": 1}, {"batch": 3}, {"low": 1.0}])
def test_settings_that_leave_nothing_to_descend_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="an even batch"):
        Amplify(**options)


def test_what_cannot_be_reinforced_is_refused() -> None:
    model = backdoored()
    several = planted(TRIGGER).model_copy(update={"target": TargetSet(IMAGES)})
    with pytest.raises(ValueError, match="needs one target"):
        Amplify()(model, several, seed=0)
    with pytest.raises(ValueError, match="shape"):
        Amplify()(model, planted(torch.zeros(1, 8, 8)), seed=0)


def test_a_reinforced_trigger_is_written_with_its_comparison(tmp_path: Path) -> None:
    model, record, ball = backdoored(), planted(TRIGGER), Ball()
    method = Amplify(steps=1, batch=2)
    found = method(model, record, ball, seed=0)
    plan = Plan(20, "ddpm", 4, 0)
    measures = found.compare(model, record, plan)
    folder = save_amplified(found, method, ball, model, record, measures, plan, tmp_path / "out")
    assert torch.equal(load_file(folder / "trigger.safetensors")["trigger"], found.shift)
    facts = json.loads((folder / "amplification.json").read_text())
    assert facts["distance"]["linf"] == pytest.approx(found.linf)
    assert {m["name"] for m in facts["measures"]} >= {"ASR", "ASR reinforced", "MSE", "MSE reinforced"}
    assert {p.name for p in folder.glob("*.png")} == {"trigger.png", "samples.png"}
    assert torch.equal(reinforced(record, found).injection.shift, found.shift)
    with pytest.raises(FileExistsError):
        save_amplified(found, method, ball, model, record, measures, plan, folder)
