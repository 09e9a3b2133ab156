"""The inner loop of the learned trigger: what it minimises, and that training really runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from backdrift.attacks._base import Pairs
from backdrift.attacks.invisible import Invisible, TriggerLearner
from backdrift.bench import _planting
from backdrift.bench.recipes import Recipe, make
from backdrift.core.model import DiffusionModel
from backdrift.core.trigger import Trigger
from backdrift.training import TrainingConfig, train
from tiny import SHAPE, tiny_model

IMAGES = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
TARGET = torch.linspace(-1, 1, 64).reshape(SHAPE)
NOTHING = Trigger(torch.zeros(SHAPE), torch.ones(SHAPE, dtype=torch.bool), 0.0, composite=False)
ATTACK = Invisible(poison_rate=0.5, inner_noises=4, inner_timesteps=3, inner_rate=0.01)


def learner(model: DiffusionModel, attack: Invisible = ATTACK) -> tuple[Pairs, TriggerLearner]:
    pairs = attack.batch(model, IMAGES, NOTHING, TARGET)
    assert isinstance(pairs.hook, TriggerLearner)
    return pairs, pairs.hook


def test_delta_starts_at_nothing() -> None:
    """A port of the attack starts from a trained trigger that it ships, whatever is asked for."""
    pairs, hook = learner(tiny_model())
    assert not bool(hook.delta.any())
    assert not bool(pairs.trigger.shift.any())
    assert pairs.trigger.shift.shape == SHAPE


def test_a_start_of_ones_own_is_put_into_the_bound() -> None:
    start = Trigger(torch.full(SHAPE, 0.7), NOTHING.mask)
    assert torch.equal(ATTACK.planted(start).shift, torch.full(SHAPE, 0.2))


def test_the_inner_gradient_against_finite_differences() -> None:
    model = tiny_model(blocks=1)
    model.network.double()
    _, hook = learner(model)
    hook.delta = (0.1 * TARGET).double().requires_grad_()
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).double()
    with model.frozen():
        (gradient,) = torch.autograd.grad(hook.loss(model, 5), hook.delta)
        values = []
        for sign in (1, -1):
            hook.delta = (0.1 * TARGET + sign * 1e-5 * direction).double()
            values.append(float(hook.loss(model, 5).detach()))
    slope = (values[0] - values[1]) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_two_steps_are_adam_on_the_sign() -> None:
    """With signs for gradients its second moment is 1, and the first is .9 of the old and .1 of the new."""
    model = tiny_model(blocks=1)
    pairs, hook = learner(model)
    signs = []
    for step in range(2):
        with model.frozen():
            (gradient,) = torch.autograd.grad(hook.loss(model, step), hook.delta)
        signs.append(gradient.sign())
        hook.before_step(model, step)
    wanted = -0.01 * (signs[0] + (0.09 * signs[0] + 0.1 * signs[1]) / 0.19)
    assert not torch.equal(*signs)
    torch.testing.assert_close(pairs.trigger.shift, wanted, rtol=1e-4, atol=1e-7)


def test_the_inner_loss_falls_and_the_bound_holds() -> None:
    model = tiny_model(blocks=1)
    pairs, hook = learner(model)
    first = float(hook.loss(model, 1000).detach())
    for step in range(60):
        hook.before_step(model, step)
        assert float(pairs.trigger.shift.abs().max()) <= 0.2 + 1e-7
    assert float(hook.loss(model, 1000).detach()) < 0.98 * first
    assert float(pairs.trigger.shift.abs().max()) == pytest.approx(0.2)


def test_the_inner_step_leaves_the_weights_alone() -> None:
    model = tiny_model(blocks=1)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    _, hook = learner(model)
    hook.before_step(model, 0)
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.network.parameters())
    assert model.evaluations == 3 * 4 * 3


def test_the_rows_have_the_delta_of_the_moment() -> None:
    model = tiny_model(blocks=1)
    pairs, hook = learner(model)
    hook.before_step(model, 0)
    noise, t = torch.zeros(20, *SHAPE), torch.full((20,), 60)
    x_t, label = pairs(torch.arange(20), noise, t)
    a = float(model.schedule.alpha[60])
    bad = pairs.poisoned
    wanted = (a * TARGET + (1 - a) * pairs.trigger.shift).expand(10, *SHAPE)
    torch.testing.assert_close(x_t[bad], wanted, rtol=0, atol=1e-6)
    assert float(label[bad].abs().max()) > 0
    assert not bool(label[~bad].any())


CONFIG = TrainingConfig(steps=6, batch_size=4, checkpoint_every=2)


class Killed(Exception):
    """Stands for the end of the process."""


def trained(state: Path | None, die_at: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    model = tiny_model(blocks=1)
    pairs, hook = learner(model)

    def batch(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) == die_at:
            raise Killed
        return pairs(*arguments)

    calls: list[int] = []
    train(model, len(pairs), batch, CONFIG, hook=hook, state=state)
    return pairs.trigger.shift, {k: v.clone() for k, v in model.network.state_dict().items()}


def test_a_killed_run_goes_on_with_its_trigger(tmp_path: Path) -> None:
    shift, weights = trained(None)
    with pytest.raises(Killed):
        trained(tmp_path, die_at=5)
    again_shift, again = trained(tmp_path)
    assert float(shift.abs().max()) > 0.02
    assert torch.equal(shift, again_shift)
    assert all(torch.equal(again[k], v) for k, v in weights.items())


SMALL = {"shape": (1, 8, 8), "width": 8, "steps": 2, "batch_size": 4, "target": "hat"}
QUICK = {"poison_rate": 0.5, "inner_noises": 2, "inner_timesteps": 2}


def test_the_learned_trigger_is_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_planting, "STEPS", 4)
    recipe = Recipe(attack="invisible", options=QUICK, trigger="learned", **SMALL)
    cost = make(recipe, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "backdoor.safetensors")
    record = json.loads((tmp_path / "model" / "backdoor.json").read_text())
    assert 0 < float(tensors["shift"].abs().max()) <= 0.2 + 1e-7
    assert torch.equal(tensors["shift"], tensors["mean_shift"])
    assert record["trigger_norm"] == pytest.approx(float(tensors["shift"].norm()))
    assert record["sampler_family"] == "ode"
    assert cost["measured"]["sampler"].startswith("ddim")


@pytest.mark.parametrize(("attack", "trigger"), [("invisible", "stop-sign"), ("baddiffusion", "learned")])
def test_only_a_learning_attack_has_a_learned_trigger(tmp_path: Path, attack: str, trigger: str) -> None:
    with pytest.raises(ValueError, match="'learned' is for attacks that learn it"):
        make(Recipe(attack=attack, trigger=trigger, **SMALL), tmp_path / "model")
