"""Numbers of tiny real models, pinned; see CONTRIBUTING for how they are updated."""

from __future__ import annotations

from collections.abc import Callable

import torch

from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import sample
from backdrift.inversion.fixed_point import FixedPoint
from tiny import tiny_model

Check = Callable[[str, list[float]], None]


def test_sampling(golden: Check) -> None:
    model = tiny_model()
    for sampler in ("ddpm", "ddim"):
        fresh = SampleGenerator(3, 4, "golden")
        x_T = fresh.normal(model.sample_shape)
        with model.frozen():
            x = sample(model, model.schedule, x_T, sampler=sampler, steps=5, generator=fresh)
        golden(f"sample {sampler}", [float(x.mean()), float(x.abs().mean()), float(x.std())])


def test_fixed_point(golden: Check) -> None:
    method = FixedPoint(noises=4, rounds=3, norms=(0.5,), families=("sde",))
    found = method(tiny_model(), seed=0)
    golden("fixed point", [value for c in found for value in (c.norm, c.gain)])
    assert all(bool(torch.isfinite(c.shift).all()) for c in found)
