"""What every inversion promises, whatever it does inside. A new file in the folder is a new row."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from backdrift.core import registry
from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate
from tiny import SHAPE, tiny_model

NAMES = list(registry.available("inversion"))
SMALL = {
    "steps": 2,
    "iterations": 2,
    "rounds": 2,
    "noises": 4,
    "batch": 4,
    "chain": 3,
    "warm_samples": 2,
    "warm_steps": 2,
}
"""Options that make any of them cheap; each takes those that it has."""

each = pytest.mark.parametrize("name", NAMES)


def small(name: str) -> object:
    fields = {f.name for f in dataclasses.fields(registry.plugin("inversion", name))}
    return registry.build("inversion", name, {k: v for k, v in SMALL.items() if k in fields})


def begin(number: int = 1) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number))


def as_bytes(found: tuple[Candidate, ...]) -> list[bytes]:
    return [c.shift.numpy().tobytes() + repr((c.family, c.start, c.gain)).encode() for c in found]


def run(name: str, seed: int = 0, model: DiffusionModel | None = None, **options: object) -> list[bytes]:
    options.setdefault("start", begin())
    return as_bytes(small(name)(model or tiny_model(), seed=seed, **options))


def test_there_are_inversions() -> None:
    assert {"fixed_point", "joint", "purediffusion", "elijah", "terd"} <= set(NAMES)


@each
def test_it_is_a_frozen_dataclass_with_defaults_that_json_can_hold(name: str) -> None:
    inversion = registry.build("inversion", name)
    field = dataclasses.fields(inversion)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(inversion, field, None)
    text = json.dumps(dataclasses.asdict(inversion))
    again = TypeAdapter(type(inversion)).validate_python(json.loads(text))
    assert again == inversion


@each
def test_it_says_where_it_comes_from(name: str) -> None:
    text = registry.plugin("inversion", name).__doc__ or ""
    assert re.search(r"arXiv \d{4}\.\d{5}", text) or re.search(r"\bOurs\b", text)
    assert registry.available("inversion")[name].endswith(".")


@each
def test_candidates_are_shifts_of_a_sample(name: str) -> None:
    found = small(name)(tiny_model(), seed=0, start=begin())
    assert found
    for candidate in found:
        assert candidate.shift.shape == SHAPE
        assert candidate.shift.dtype == torch.float32
        assert candidate.shift.isfinite().all()
        assert not candidate.shift.requires_grad
        assert candidate.norm == pytest.approx(float(candidate.shift.square().sum().sqrt()))
        assert candidate.norm > 0
        assert candidate.family in ("sde", "ode")
        assert candidate.start
        assert candidate.history
        if candidate.target is not None:
            assert candidate.target.shape == SHAPE
            assert not candidate.target.requires_grad


@each
def test_one_seed_gives_one_answer_and_another_gives_another(name: str) -> None:
    assert run(name, 0) == run(name, 0)
    assert run(name, 0) != run(name, 1)


@each
def test_it_needs_no_start(name: str) -> None:
    small_one = small(name)
    found = small_one(tiny_model(), seed=0)
    assert as_bytes(found) == as_bytes(small_one(tiny_model(), seed=0))
    assert as_bytes(found) != run(name, 0)


@each
def test_a_start_is_honoured(name: str) -> None:
    assert run(name, start=begin(1)) != run(name, start=begin(2))
    inversion = small(name)
    rate = getattr(inversion, "learning_rate", None)
    if rate is not None:  # Adam moves a value by at most 3.17 rates a step
        for candidate in inversion(tiny_model(), seed=0, start=begin()):
            assert float((candidate.shift - begin()).abs().max()) <= 3.17 * rate * SMALL["steps"]


@each
def test_the_start_is_not_written_to(name: str) -> None:
    start = begin()
    run(name, start=start)
    assert torch.equal(start, begin())


@each
def test_global_randomness_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    first = run(name)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1234)
    assert run(name) == first


@each
def test_the_model_comes_back_as_it_was(name: str) -> None:
    model = tiny_model()
    parameters = list(model.network.parameters())
    model.network.train()
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)
    flags = [p.requires_grad for p in parameters]
    before = [p.detach().clone() for p in parameters]
    first = run(name, model=model)
    assert model.network.training
    assert [p.requires_grad for p in parameters] == flags
    assert all(p.grad is None for p in parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert model.device == torch.device("cpu")
    model.network.eval().requires_grad_(False)
    assert run(name, model=model) == first


@each
def test_the_batch_split_changes_no_more_than_rounding(name: str) -> None:
    whole, split = tiny_model(), tiny_model()
    split.batch_size = 3
    left = small(name)(whole, seed=0, start=begin())
    right = small(name)(split, seed=0, start=begin())
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.shift, b.shift, atol=1e-3, rtol=1e-3)


@each
def test_what_it_costs_is_counted(name: str) -> None:
    inversion, model = small(name), tiny_model()
    samples = 0

    def count(module: object, arguments: tuple[Tensor, ...], output: object) -> None:
        nonlocal samples
        samples += len(arguments[0])

    model.network.register_forward_hook(count)
    inversion(model, seed=0, start=begin())
    assert 0 < samples <= model.evaluations <= 3 * samples


@each
def test_it_keeps_to_its_cost(name: str) -> None:
    inversion, model = small(name), tiny_model()
    inversion(model, seed=0)
    assert 0.5 * inversion.cost <= model.evaluations <= inversion.cost


@each
def test_progress_counts_up_to_its_total(name: str) -> None:
    calls: list[tuple[int, int, str]] = []
    run(name, progress=lambda done, total, text: calls.append((done, total, text)))
    assert calls
    assert all(0 < done <= total and text for done, total, text in calls)
    assert calls[-1][0] == calls[-1][1]
