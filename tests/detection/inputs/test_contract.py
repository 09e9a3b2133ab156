"""What every input detector promises. A new file in the folder is a new row."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from torch import Tensor

from backdrift.core import registry
from backdrift.core.model import DiffusionModel
from backdrift.detection.inputs._base import clean_threshold
from tiny import SHAPE, tiny_model

NAMES = list(registry.available("detection.inputs"))
each = pytest.mark.parametrize("name", NAMES)
SMALL = {"steps": 4, "iterations": 2}
"""Options that make any of them cheap; each takes those that it has."""


def small(name: str) -> object:
    fields = {f.name for f in dataclasses.fields(registry.plugin("detection.inputs", name))}
    return registry.build("detection.inputs", name, {k: v for k, v in SMALL.items() if k in fields})


def starts(n: int = 5) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(3))


def score(name: str, x: Tensor, seed: int = 0, model: DiffusionModel | None = None) -> Tensor:
    return small(name).scores(model or tiny_model(blocks=1), x, seed=seed)


def test_there_are_input_detectors() -> None:
    assert {"terd", "ufid"} <= set(NAMES)


@each
def test_it_is_a_frozen_dataclass_with_defaults_that_json_can_hold(name: str) -> None:
    detector = registry.build("detection.inputs", name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(detector, dataclasses.fields(detector)[0].name, 1)
    assert type(detector)(**json.loads(json.dumps(dataclasses.asdict(detector)))) == detector


@each
def test_it_says_where_it_comes_from(name: str) -> None:
    text = registry.plugin("detection.inputs", name).__doc__ or ""
    assert re.search(r"arXiv \d{4}\.\d{5}", text) or re.search(r"\bOurs\b", text)
    assert registry.available("detection.inputs")[name].endswith(".")


@each
def test_its_settings_are_json_with_a_version(name: str) -> None:
    settings = registry.build("detection.inputs", name).settings()
    assert settings["version"] >= 1
    assert json.loads(json.dumps(settings)) == settings


@each
def test_one_score_for_each_start(name: str) -> None:
    found = score(name, starts())
    assert found.shape == (5,)
    assert found.dtype == torch.float64
    assert bool(found.isfinite().all())
    assert not found.requires_grad


@each
def test_it_costs_what_it_says(name: str) -> None:
    model = tiny_model(blocks=1)
    score(name, starts(), model=model)
    assert 0.9 * small(name).cost(5) <= model.evaluations <= small(name).cost(5)


@each
def test_one_seed_gives_the_same_bytes_and_leaves_global_randomness_alone(name: str) -> None:
    torch.manual_seed(77)
    state = torch.get_rng_state()
    first, again = score(name, starts()), score(name, starts())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)


@each
def test_a_score_is_that_of_its_start_whatever_the_batch(name: str) -> None:
    x, whole = starts(), score(name, starts())
    for batch_size in (1, 3, 7):
        model = tiny_model(blocks=1)
        model.batch_size = batch_size
        assert torch.allclose(score(name, x, model=model), whole, atol=1e-4, rtol=0)
    apart = torch.cat([score(name, x[3:]), score(name, x[:3])])
    assert torch.allclose(apart, whole.roll(2), atol=1e-4, rtol=0)


@each
def test_the_model_and_the_starts_come_back_as_they_were(name: str) -> None:
    model, x = tiny_model(blocks=1), starts()
    model.network.train()
    score(name, x, model=model)
    fresh = tiny_model(blocks=1).network.state_dict()
    assert model.network.training
    assert torch.equal(x, starts())
    assert all(p.requires_grad and p.grad is None for p in model.network.parameters())
    assert all(torch.equal(value, fresh[key]) for key, value in model.network.state_dict().items())


@each
@pytest.mark.parametrize("shape", [(0, *SHAPE), SHAPE, (2, 1, 8, 7), (2, 3, 8, 8)])
def test_starts_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="starts"):
        score(name, torch.zeros(shape))


@each
def test_a_threshold_from_clean_starts_keeps_its_rate(name: str) -> None:
    model = tiny_model(blocks=1)
    options = {"n": 10, "false_positive_rate": 0.2, "seed": 5}
    threshold = clean_threshold(small(name), model, **options)
    assert threshold == clean_threshold(small(name), model, **options)
    most = 2 * small(name).cost(10)
    assert 0.9 * most <= model.evaluations <= most
