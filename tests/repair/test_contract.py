"""What every repair promises. A new file in the folder is a new row."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from functools import cache
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from torch import Tensor

from backdrift.core import registry
from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate
from backdrift.repair._base import Repaired, working_copy
from tiny import SHAPE, tiny_model

NAMES = list(registry.available("repair"))
each = pytest.mark.parametrize("name", NAMES)
SMALL = {
    "steps": 2,
    "rounds": 1,
    "batch_size": 4,
    "images": 8,
    "generated": 8,
    "sampling_steps": 2,
    "judged": 4,
    "samples": 4,
    "inversion_steps": 2,
    "pruning_steps": 2,
}
"""Options that make any of them cheap; each takes those that it has."""


def small(name: str) -> object:
    fields = {f.name for f in dataclasses.fields(registry.plugin("repair", name))}
    return registry.build("repair", name, {k: v for k, v in SMALL.items() if k in fields})


def evidence() -> tuple[Candidate, ...]:
    stream = torch.Generator().manual_seed(5)
    trigger, target = (torch.randn(SHAPE, generator=stream) for _ in range(2))
    return (Candidate(trigger, "sde", "evidence", target=target.clamp(-1, 1)),)


def images(n: int = 6) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(6)) * 2 - 1


def run(name: str, seed: int = 0, model: DiffusionModel | None = None, **given: Any) -> Repaired:
    return small(name)(model or tiny_model(blocks=1), evidence(), seed=seed, **given)


@cache
def once(name: str) -> tuple[Repaired, list[tuple[int, int, str]]]:
    """A run, and what it said of its progress."""
    calls: list[tuple[int, int, str]] = []
    return run(name, progress=lambda *call: calls.append(call)), calls


@cache
def with_data(name: str) -> Repaired:
    return run(name, data=images())


def drawn(repaired: Repaired, n: int = 3) -> Tensor:
    from backdrift.metrics.draws import draw

    return draw(repaired.model, None, sampler="ddpm", steps=5, n=n, seed=1, hook=repaired.hook)


def test_there_are_repairs() -> None:
    assert {"anp", "clipping", "elijah", "input_filter", "unlearn"} <= set(NAMES)


@each
def test_it_is_a_frozen_dataclass_with_defaults_that_json_can_hold(name: str) -> None:
    repair = registry.build("repair", name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(repair, dataclasses.fields(repair)[0].name, 1)
    kept = json.loads(json.dumps(dataclasses.asdict(repair)))
    assert registry.build("repair", name, kept) == repair


@each
def test_it_says_where_it_comes_from(name: str) -> None:
    text = registry.plugin("repair", name).__doc__ or ""
    assert re.search(r"arXiv \d{4}\.\d{5}", text) or re.search(r"\bOurs\b", text)
    assert registry.available("repair")[name].endswith(".")


@each
def test_nobody_can_tell_it_the_truth(name: str) -> None:
    taken = set(inspect.signature(registry.plugin("repair", name).__call__).parameters)
    assert taken == {"self", "model", "evidence", "data", "seed", "progress"}


@each
def test_a_clean_model_still_draws(name: str) -> None:
    repaired, _ = once(name)
    samples = drawn(repaired)
    assert samples.shape == (3, *SHAPE)
    assert bool(samples.isfinite().all())
    assert repaired.model.prediction_type == "epsilon"
    if registry.plugin("repair", name).changes_weights:
        assert not any(m.training for m in repaired.model.network.modules())


@each
def test_it_changes_what_it_says(name: str) -> None:
    (repaired, _), before = once(name), tiny_model(blocks=1).network.state_dict()
    after = repaired.model.network.state_dict()
    same = all(torch.equal(before[key], after[key]) for key in before)
    if registry.plugin("repair", name).changes_weights:
        assert repaired.hook is None
        assert after.keys() == before.keys()
        assert not same or repaired.record.measured.get("channels pruned") == 0
    else:
        assert same
        assert repaired.hook is not None
        assert repaired.hook.name


@each
def test_one_seed_gives_the_same_bytes_and_leaves_global_randomness_alone(name: str) -> None:
    torch.manual_seed(77)
    state = torch.get_rng_state()
    (first, _), again = once(name), run(name)
    assert torch.equal(state, torch.get_rng_state())
    left, right = first.model.network.state_dict(), again.model.network.state_dict()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert torch.equal(drawn(first), drawn(again))
    assert first.record.measured == again.record.measured


@each
@pytest.mark.parametrize("train", [True, False])
def test_the_model_comes_back_as_it_was(name: str, train: bool) -> None:
    model = tiny_model(blocks=1)
    model.network.train(train)
    run(name, model=model)
    fresh = tiny_model(blocks=1).network.state_dict()
    assert model.network.training == train
    assert all(p.requires_grad and p.grad is None for p in model.network.parameters())
    assert not any(m._forward_hooks for m in model.network.modules())
    assert all(torch.equal(value, fresh[key]) for key, value in model.network.state_dict().items())


@each
def test_its_record_is_json_with_what_it_cost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = 0
    forward = torch.nn.Conv2d.forward

    def count(layer: torch.nn.Conv2d, x: Tensor) -> Tensor:
        nonlocal samples
        samples += len(x) if layer.in_channels == SHAPE[0] and layer.out_channels == 8 else 0
        return forward(layer, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", count)
    record = run(name).record
    assert record.method == name
    assert json.loads(json.dumps(dataclasses.asdict(record)))["seed"] == 0
    assert record.stopped
    assert record.seconds >= 0
    assert samples <= record.evaluations <= 3 * samples
    assert (record.evaluations > 0) == registry.plugin("repair", name).changes_weights


@each
def test_the_images_that_it_used_are_counted(name: str) -> None:
    assert once(name)[0].record.images == 0
    assert with_data(name).record.images == (6 if name in ("anp", "elijah") else 0)


@each
def test_data_of_another_shape_are_refused_by_those_that_use_any(name: str) -> None:
    if with_data(name).record.images:
        with pytest.raises(ValueError, match="clean images of shape"):
            run(name, data=torch.zeros(4, 3, 8, 8))


@each
def test_those_that_need_evidence_say_so(name: str) -> None:
    if name not in ("elijah", "input_filter", "unlearn"):
        small(name)(tiny_model(blocks=1), (), seed=0)
        return
    with pytest.raises(ValueError, match="scan MODEL --evidence"):
        small(name)(tiny_model(blocks=1), (), seed=0)
    wrong = (Candidate(torch.zeros(3, 8, 8), "sde", "evidence"),)
    with pytest.raises(ValueError, match="another model"):
        small(name)(tiny_model(blocks=1), wrong, seed=0)


@each
def test_progress_counts_up_to_its_total(name: str) -> None:
    _, calls = once(name)
    assert all(0 < done <= total and text for done, total, text in calls)
    if registry.plugin("repair", name).changes_weights:
        assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("name", ["anp", "elijah", "unlearn"])
def test_on_a_machine_with_a_gpu_it_stays_where_the_model_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a device that computes nothing in the place of the GPU."""
    monkeypatch.setattr(PartialState, "default_device", property(lambda _: torch.device("meta")))
    PartialState._reset_state()
    assert run(name).model.device.type == "cpu"
    PartialState._reset_state()


def test_the_removal_of_elijah_costs_what_its_docstring_says() -> None:
    assert with_data("elijah").record.evaluations == 2 * 4 * 10


@pytest.mark.parametrize(
    ("name", "option"),
    [("unlearn", "rounds"), ("unlearn", "images"), ("elijah", "steps"), ("anp", "batch_size")],
)
def test_a_count_that_leaves_nothing_is_refused(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {option} is \\d or more, not 0$"):
        registry.build("repair", name, {option: 0})


def test_a_copy_shares_nothing() -> None:
    model = tiny_model(blocks=1)
    copied = working_copy(model)
    with torch.no_grad():
        next(copied.network.parameters()).add_(1)
    fresh = tiny_model(blocks=1).network.state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in model.network.state_dict().items())
    copied(torch.zeros(2, *SHAPE), 0)
    assert model.evaluations == 0
