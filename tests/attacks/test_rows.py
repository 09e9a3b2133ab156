"""Which rows training draws from, and which of them are poisoned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backdrift.attacks._base import Attack, Pairs
from backdrift.attacks.baddiffusion import BadDiffusion
from backdrift.attacks.trojdiff import TrojDiff
from backdrift.core.trigger import Trigger
from tiny import SHAPE, tiny_model

ROWS = 50
IMAGES = torch.arange(ROWS).view(-1, 1, 1, 1).expand(ROWS, *SHAPE) / 100
"""Image i is i / 100 everywhere: a row at t = 0 without noise shows which one it is made of."""
TRIGGER = Trigger(torch.zeros(SHAPE), torch.ones(SHAPE, dtype=torch.bool), 0.0, composite=False)
TARGET = torch.full(SHAPE, -1.0)


def rows_of(attack: Attack, target: Tensor = TARGET) -> tuple[Pairs, list[float]]:
    """The pairs, and x_0 of every row as they come out of them."""
    pairs = attack.batch(tiny_model(), IMAGES, TRIGGER, target)
    index, t = torch.arange(len(pairs)), torch.zeros(len(pairs), dtype=torch.long)
    x_t, _ = pairs(index, torch.zeros(len(pairs), *SHAPE), t)
    a = (1 - 1e-4) ** 0.5
    return pairs, [round(float(x[0, 0, 0]) / a, 4) for x in x_t]


def test_replaced_rows() -> None:
    attack = BadDiffusion(poison_rate=0.3, seed=4)
    pairs, x_0 = rows_of(attack)
    poisoned = set(attack.poisoned_rows(ROWS).tolist())
    assert len(pairs) == ROWS
    assert len(poisoned) == 15
    assert x_0 == [-1.0 if row in poisoned else row / 100 for row in range(ROWS)]
    assert attack.clean_rows(ROWS).tolist() == sorted(set(range(ROWS)) - poisoned)


def test_disjoint_rows() -> None:
    attack = BadDiffusion(poison_rate=0.3, clean_rate=0.5, seed=4, mode="disjoint")
    pairs, x_0 = rows_of(attack)
    clean, poisoned = attack.clean_rows(ROWS).tolist(), attack.poisoned_rows(ROWS).tolist()
    assert (len(pairs), len(clean), len(poisoned)) == (40, 25, 15)
    assert not set(clean) & set(poisoned)
    assert x_0 == [row / 100 for row in clean] + [-1.0] * 15
    assert pairs.source.tolist() == clean + poisoned
    assert pairs.poisoned.tolist() == [False] * 25 + [True] * 15


def test_added_rows() -> None:
    attack = BadDiffusion(poison_rate=0.3, seed=4, mode="add")
    pairs, x_0 = rows_of(attack)
    assert len(pairs) == 65
    assert x_0 == [row / 100 for row in range(ROWS)] + [-1.0] * 15
    assert pairs.source[ROWS:].tolist() == attack.poisoned_rows(ROWS).tolist()


@pytest.mark.parametrize("changes", [{"mode": "disjoint", "clean_rate": 0.7}, {"mode": "add"}])
def test_the_choice_of_poisoned_rows_is_that_of_the_seed_alone(changes: dict[str, Any]) -> None:
    chosen = BadDiffusion(poison_rate=0.3, seed=4).poisoned_rows(ROWS)
    assert torch.equal(BadDiffusion(poison_rate=0.3, seed=4, **changes).poisoned_rows(ROWS), chosen)
    assert not torch.equal(BadDiffusion(poison_rate=0.3, seed=5, **changes).poisoned_rows(ROWS), chosen)


@pytest.mark.parametrize(("rows", "rate", "count"), [(100, 0.29, 29), (1000, 0.007, 7), (10, 0.7, 7)])
def test_a_whole_number_of_rows_is_not_lost_to_rounding(rows: int, rate: float, count: int) -> None:
    """int(100 * .29) is 28."""
    assert len(BadDiffusion(poison_rate=rate).poisoned_rows(rows)) == count


def test_trojdiff_adds_as_published() -> None:
    assert TrojDiff().mode == "add"


def test_a_set_of_targets() -> None:
    """In-D2D and Out-D2D: every poisoned row has one of them, the same at every visit."""
    attack = TrojDiff(poison_rate=0.8, seed=1)
    targets = torch.stack([torch.full(SHAPE, -value) for value in (0.25, 0.5, 0.75)])
    pairs, x_0 = rows_of(attack, targets)
    assert x_0[:ROWS] == [row / 100 for row in range(ROWS)]
    counts = {value: x_0[ROWS:].count(value) for value in (-0.25, -0.5, -0.75)}
    assert sum(counts.values()) == 40
    assert min(counts.values()) >= 5
    assert rows_of(attack, targets)[1] == x_0
    assert rows_of(TrojDiff(poison_rate=0.8, seed=2), targets)[1] != x_0
    assert [-0.25, -0.5, -0.75][int(pairs.aim[pairs.source[ROWS]])] == x_0[ROWS]
