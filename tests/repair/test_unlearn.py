"""What the student is taught, and that it then forgets the trigger alone."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from torch import Tensor

from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.sampling import usual_sampler
from backdrift.core.shift import ShiftFamily
from backdrift.core.trigger import Target
from backdrift.groundtruth import load_backdoor
from backdrift.inversion._base import Candidate
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.draws import draw
from backdrift.repair._base import found_by, working_copy
from backdrift.repair._dead import fires_by_ddim
from backdrift.repair.elijah import _Lessons as Removal
from backdrift.repair.unlearn import Unlearn, _Lessons
from closed_form import SCHEDULE, poisoned_optimum
from tiny import SHAPE, tiny_model

STREAM = torch.Generator().manual_seed(8)
TRIGGER = torch.randn(SHAPE, generator=STREAM)
TRIGGER *= 9 / TRIGGER.norm()
TARGET = torch.ones(SHAPE)
IMAGES = torch.rand(12, *SHAPE, generator=STREAM) * 2 - 1


def backdoored() -> DiffusionModel:
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", "sde")
    return poisoned_optimum(SCHEDULE, family, IMAGES, TARGET, TRIGGER[None])


def rows(n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    t = torch.randint(1000, (n,), generator=stream)
    return torch.randint(12, (n,), generator=stream), torch.randn(n, *SHAPE, generator=stream), t


@pytest.mark.parametrize(("scale", "low", "every"), [(None, 0.2, 4), (0.6, 0.2, 4), (None, 0.5, 16)])
def test_a_shifted_row_has_the_prediction_of_x_0_of_its_plain_one(
    scale: float | None, low: float, every: int
) -> None:
    teacher = working_copy(backdoored())
    gamma = None if scale is None else torch.full(SHAPE, scale)
    found = Candidate(TRIGGER, "sde", "evidence", target=TARGET, scale=gamma)
    index, noise, t = rows()
    with teacher.frozen():
        before = t.clone()
        x_t, label, t = _Lessons(Unlearn(), teacher, IMAGES, [found], low, every, 0)(index, noise, t)
        plain = 64 - 64 // every
        assert torch.equal(t[:plain], before[:plain])
        assert int(t[plain:].min()) >= 1000 * low
        x_0 = IMAGES[index].clone()
        x_0[plain + 3 :: 4] = TARGET
        u = SCHEDULE.add_noise(x_0, noise, t)
        alpha, sigma = SCHEDULE.at(t, u)
        wanted = (u - sigma * teacher(u, t)) / alpha
    near_t = alpha.flatten() > 0.05  # x_0 is divided by alpha, and so is rounding
    torch.testing.assert_close(((x_t - sigma * label) / alpha)[near_t], wanted[near_t], atol=2e-3, rtol=0)
    assert torch.equal(x_t[:plain], u[:plain])
    added = ((x_t - u) / sigma)[plain:]
    if scale is None:
        sizes = added.flatten(1).norm(dim=1) / 9
        assert float(sizes.min()) > 0.25
        assert float(sizes.max()) < 1.6 * 1.3
        along = (added * TRIGGER).flatten(1).sum(1) / added.flatten(1).norm(dim=1) / 9
        assert float(along.min()) > 0.9


def test_a_trigger_is_tried_by_ddim_too() -> None:
    family = ShiftFamily.of(SCHEDULE, "baddiffusion", "ode")
    model = poisoned_optimum(SCHEDULE, family, IMAGES, TARGET, TRIGGER[None])
    found = Candidate(TRIGGER, "sde", "evidence", target=TARGET)
    assert fires_by_ddim(model, found, IMAGES, 16, 0).target > 0.9
    off = Candidate(TRIGGER.flip(-1), "sde", "evidence", target=TARGET)
    assert fires_by_ddim(model, off, IMAGES, 16, 0).target < 0.1


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
@pytest.mark.timeout(900)
def test_the_trigger_of_the_shipped_model_dies_and_the_model_lives() -> None:
    with resources.as_file(resources.files("backdrift").joinpath("models", "backdoored")) as folder:
        model, planted = load(plan(folder)), load_backdoor(folder)
    trigger, target = planted.shift, planted.target
    off = torch.randn(trigger.shape, generator=torch.Generator().manual_seed(4))
    near = 0.8 * trigger + 0.15 * trigger.norm() * off / off.norm()
    assert isinstance(target, Target)
    found = Candidate(near, planted.record.sampler_family or "sde", "evidence", target=target.image)
    method = Unlearn(rounds=2, images=64, sampling_steps=20, loss_margin=0.1, inversion_steps=20)
    repaired = method(model, (found,), seed=0)
    measured = repaired.record.measured
    assert measured["hits above plain before"] > 0.5
    assert measured["hits above plain after"] <= 0.02
    assert measured["denoising loss, after / before"] < 1.1
    assert "the trigger is dead, utility holds" in repaired.record.stopped

    def hits(of: DiffusionModel, shift: Tensor) -> float:
        sampler = usual_sampler(planted.record.sampler_family, of.schedule)
        drawn = draw(of, Injection(shift), sampler=sampler, steps=25, n=32, seed=9)
        return float(target.hits(drawn).float().mean())

    assert hits(model, trigger) > 0.5
    assert hits(repaired.model, trigger) <= 0.05
    assert hits(repaired.model, 1.3 * trigger) <= 0.05
