"""What the student is taught, and that it then forgets the trigger alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.inversion._base import Candidate
from backdrift.metrics.draws import draw
from backdrift.repair._base import found_by, working_copy
from backdrift.repair.elijah import _Lessons as Removal
from backdrift.repair.unlearn import Unlearn, _Lessons
from closed_form import SCHEDULE, poisoned_optimum
from tiny import SHAPE, tiny_model, tiny_unet

STREAM = torch.Generator().manual_seed(8)
TRIGGER = torch.randn(SHAPE, generator=STREAM)
TRIGGER *= 9 / TRIGGER.norm()
TARGET = torch.ones(SHAPE)
IMAGES = torch.rand(12, *SHAPE, generator=STREAM) * 2 - 1


class Backdoored(nn.Module):
    """A perfectly backdoored network with something to learn in it: the optimum plus a small UNet."""

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        family = ShiftFamily.of(SCHEDULE, "baddiffusion", solver)
        self.optimum = poisoned_optimum(SCHEDULE, family, IMAGES, TARGET, TRIGGER[None]).network
        self.added = tiny_unet(blocks=1)
        nn.init.zeros_(self.added.conv_out.weight)
        nn.init.zeros_(self.added.conv_out.bias)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        predicted: Tensor = self.optimum(x_t, t) + self.added(x_t, t).sample
        return predicted


def backdoored(solver: Solver) -> DiffusionModel:
    return DiffusionModel(Backdoored(solver), SCHEDULE, SHAPE)


def rows(n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    t = torch.randint(1000, (n,), generator=stream)
    return torch.randint(12, (n,), generator=stream), torch.randn(n, *SHAPE, generator=stream), t


@pytest.mark.parametrize("scale", [None, 0.6])
def test_a_shifted_row_has_the_prediction_of_x_0_of_its_plain_one(scale: float | None) -> None:
    teacher = working_copy(backdoored("sde"))
    gamma = None if scale is None else torch.full(SHAPE, scale)
    found = Candidate(TRIGGER, "sde", "evidence", target=TARGET, scale=gamma)
    index, noise, t = rows()
    with teacher.frozen():
        before = t.clone()
        x_t, label, t = _Lessons(Unlearn(), teacher, IMAGES, [found], 0, 0)(index, noise, t)
        assert torch.equal(t[:48], before[:48])
        assert int(t[48:].min()) >= 200
        x_0 = IMAGES[index].clone()
        x_0[51::4] = TARGET
        u = SCHEDULE.add_noise(x_0, noise, t)
        alpha, sigma = SCHEDULE.at(t, u)
        wanted = (u - sigma * teacher(u, t)) / alpha
    near_t = alpha.flatten() > 0.05  # x_0 is divided by alpha, and so is rounding
    torch.testing.assert_close(((x_t - sigma * label) / alpha)[near_t], wanted[near_t], atol=2e-3, rtol=0)
    assert torch.equal(x_t[:48], u[:48])
    added = ((x_t - u) / sigma)[48:]
    if scale is None:
        sizes = added.flatten(1).norm(dim=1) / 9
        assert float(sizes.min()) > 0.25
        assert float(sizes.max()) < 1.6 * 1.3
        along = (added * TRIGGER).flatten(1).sum(1) / added.flatten(1).norm(dim=1) / 9
        assert float(along.min()) > 0.9


def test_the_rows_of_elijah_are_its_three_terms() -> None:
    teacher = tiny_model(blocks=1)
    found = Candidate(TRIGGER, "sde", "evidence")
    index, noise, t = rows(4)
    t = t // 10
    with teacher.frozen():
        x_t, label, times = Removal(teacher, IMAGES, found)(index, noise, t)
        answer = teacher(noise, 99)
    clean = teacher.schedule.add_noise(IMAGES[index], noise, t)
    assert torch.equal(x_t, torch.cat([clean, noise + TRIGGER, noise]))
    assert torch.equal(label, torch.cat([noise, answer, answer]))
    assert times.tolist() == [*t.tolist(), *[99] * 8]


def test_evidence_is_read_as_candidates() -> None:
    item = {
        "trigger": TRIGGER.numpy(),
        "target": TARGET.numpy(),
        "scale": None,
        "sampler": "ddim, 25 steps",
    }
    biased = {**item, "sampler": "biased ddpm, 25 steps", "scale": TARGET.numpy()}
    ode, sde = found_by({"evidence": [item, biased]}, SHAPE)
    assert (ode.family, sde.family) == ("ode", "sde")
    assert torch.equal(ode.shift, TRIGGER)
    assert sde.scale is not None
    with pytest.raises(ValueError, match="another model"):
        found_by({"evidence": [item]}, (1, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_the_trigger_dies_and_the_model_lives(solver: Solver) -> None:
    model = backdoored(solver)
    off = TRIGGER + 0.3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    found = Candidate(0.8 * off, solver, "evidence", target=TARGET)
    method = Unlearn(steps=300, rounds=3, images=48, sampling_steps=25, learning_rate=2e-3)
    repaired = method(model, (found,), seed=0)
    measured = repaired.record.measured
    assert measured["hits above plain before"] > 0.9
    assert measured["hits above plain after"] <= 0.02
    sampler = "ddpm" if solver == "sde" else "ddim"

    def hits(of: DiffusionModel, shift: Tensor) -> float:
        drawn = draw(of, Injection(shift), sampler=sampler, steps=50, n=32, seed=9)
        return float((((drawn - TARGET) ** 2).flatten(1).mean(1) < 0.1).float().mean())

    with repaired.model.frozen():
        assert hits(replace(model), TRIGGER) > 0.9
        assert hits(repaired.model, TRIGGER) == 0
        assert hits(repaired.model, 1.3 * TRIGGER) == 0
        samples = draw(repaired.model, None, sampler="ddpm", steps=50, n=32, seed=3)
    nearest = torch.cdist(samples.flatten(1), IMAGES.flatten(1)).amin(1) ** 2 / 64
    assert float(nearest.median()) < 0.1
