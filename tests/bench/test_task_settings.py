"""What tasks may say, and what the address of their results depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backdrift.bench.runner import Cell
from backdrift.bench.tasks import Task, bench_cells, load_bench
from backdrift.evaluate import Plan
from kinds import FEW, REPAIR, population, suite


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "detect", "method": "elijah", "twin": "clean"}, "detect has no twin; that is for evalu"),
        ({"kind": "evaluate", "plan": FEW}, "evaluate has no plan; that is for repair, amplify"),
        ({"kind": "repair", "method": "anp"}, "repair needs scan"),
        ({"kind": "amplify", "radius": 0}, "radius"),
    ],
)
def test_what_a_kind_does_not_have(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task.model_validate(task)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "evaluate", "at": [3]}, "one: bad has no step 3: 0, 2, 4"),
        ({"kind": "evaluate", "twin": "wrong"}, "one: no model is called 'wrong'"),
        ({"kind": "evaluate", "options": {"sample": 3}}, "evaluate has no option 'sample'"),
        ({"kind": "amplify", "options": {"variant": "wrong"}}, "amplify: variant='wrong'"),
        ({"kind": "discover", "method": "unlearn"}, "unlearn has no search"),
        ({**REPAIR, "method": "clipping"}, "no earlier task 'scan' of kind detect has clean with seed 0"),
    ],
)
def test_what_cannot_be_done_is_said_before_it_is_begun(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench_cells(suite(one=task), population(), Path())


def cell(task: dict[str, Any], **changes: Any) -> Cell:
    return bench_cells(suite(one=task), population(**changes), Path())[-1]


def test_a_result_depends_on_what_it_was_measured_beside() -> None:
    plain = {"kind": "evaluate", "options": FEW}
    addresses = [
        cell(task, **changes).address
        for task in (plain, {**plain, "twin": "clean"}, {**plain, "at": [2]}, {**plain, "at": [4]})
        for changes in ({}, {"clean": {"seed": 1}})
    ]
    assert len(set(addresses)) == 8
    assert cell(plain).address == cell(plain, bad={"keep": [1]}).address


def test_only_a_model_with_a_backdoor_is_measured_by_default() -> None:
    names = [c.name for c in bench_cells(suite(one={"kind": "amplify"}), population(), Path())]
    assert names == ["clean", "bad", "one, bad, seed 0"]


def test_the_sampler_of_the_shipped_studies() -> None:
    """Their settings are those of the figures that they are for."""
    loaded, _ = load_bench("attack-study")
    assert loaded.tasks["dpm-solver"].measured(0, "ddpm") == Plan(1000, "dpm-solver", 20, 0, 256)
    assert loaded.tasks["kept"].at == (250, 500, 1000)
    loaded, models = load_bench("amplification")
    shares = [step / models.models["baddiffusion-stop-sign"].steps for step in loaded.tasks["attack"].at]
    assert shares == [0, 1 / 20, 1 / 10, 1 / 5, 1 / 2, 1]
    assert torch.tensor([task.radius for task in loaded.tasks.values()]).unique().tolist() == [
        pytest.approx(0.2)
    ]
