"""Streams: the same on every platform, apart from each other, indifferent to the batch."""

from __future__ import annotations

import hashlib

import pytest
import torch

from backdrift.core.randomness import SampleGenerator, derive_seed, generator


def test_seed_is_a_hash_of_the_names() -> None:
    digest = hashlib.sha256(b"7/probe/3").digest()
    assert derive_seed(7, "probe", 3) == int.from_bytes(digest[:8], "little") // 2


def test_seeds_fit_and_differ() -> None:
    seeds = {derive_seed(s, name, i) for s in range(5) for name in ("", "a", "b") for i in range(50)}
    assert len(seeds) == 5 * 3 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("indices", [[0], [3, 1], [7, 2, 5]])
def test_a_sample_sees_the_same_numbers_in_any_batch(indices: list[int]) -> None:
    whole, part = SampleGenerator(0, 8, "x"), SampleGenerator(0, indices, "x")
    assert len(whole) == 8
    assert len(part) == len(indices)
    for _ in range(3):  # the streams stay in step
        assert torch.equal(part.normal((1, 4, 4)), whole.normal((1, 4, 4))[indices])


def test_names_and_seeds_never_share_a_stream() -> None:
    first = SampleGenerator(0, 4, "start").normal((8,))
    assert not torch.equal(first, SampleGenerator(0, 4, "fresh").normal((8,)))
    assert not torch.equal(first, SampleGenerator(1, 4, "start").normal((8,)))
    assert torch.equal(first, SampleGenerator(0, 4, "start").normal((8,)))


def test_the_numbers_are_standard_normal() -> None:
    drawn = SampleGenerator(0, 64, "n").normal((1, 32, 32))
    assert drawn.dtype == torch.float32
    assert drawn.shape == (64, 1, 32, 32)
    assert float(drawn.mean()) == pytest.approx(0, abs=5 / 256)
    assert float(drawn.var()) == pytest.approx(1, abs=5 * 2**0.5 / 256)
    means = drawn.flatten(1).mean(1)  # samples are independent of each other
    assert float(means.std()) == pytest.approx(1 / 32, rel=0.4)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    SampleGenerator(0, 2).normal((4,))
    torch.randn(3, generator=generator(0, "y"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_stream_that_belongs_to_no_sample() -> None:
    first, again, other = (torch.rand(4, generator=generator(3, n)) for n in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
