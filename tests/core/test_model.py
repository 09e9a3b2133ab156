"""The model under test: conversions, cost, memory, and batches that may be split anywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdrift.core.model import DiffusionModel, PredictionType, out_of_memory
from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import sample
from backdrift.core.schedule import NoiseSchedule
from tiny import SHAPE, tiny_model, tiny_unet

SCHEDULE = NoiseSchedule.linear()


class Answer(nn.Module):
    """Says what it was told to say, whole or as the output object of diffusers."""

    def __init__(self, answer: Tensor, wrapped: bool = False) -> None:
        super().__init__()
        self.answer, self.wrapped = answer, wrapped

    def forward(self, x_t: Tensor, times: Tensor) -> Any:
        return SimpleNamespace(sample=self.answer) if self.wrapped else self.answer


class Hungry(nn.Module):
    """A network that fits ``room`` samples into memory."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.sizes: list[int] = []

    def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
        self.sizes.append(len(x_t))
        if len(x_t) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2 * x_t + times.view(-1, 1, 1, 1)


class Broken(nn.Module):
    def forward(self, x_t: Tensor, times: Tensor) -> Tensor:
        return x_t @ torch.zeros(3, 3)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_becomes_noise(prediction: PredictionType, wrapped: bool) -> None:
    x_0, noise = torch.randn(2, 4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 10, 500, 999])
    abar = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    said = {"epsilon": noise, "v_prediction": a * noise - s * x_0, "sample": x_0}[prediction]
    model = DiffusionModel(Answer(said, wrapped), SCHEDULE, SHAPE, prediction)
    torch.testing.assert_close(model(a * x_0 + s * noise, t), noise, rtol=1e-9, atol=1e-9)


def test_an_int_timestep_reaches_every_sample() -> None:
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    model = DiffusionModel(Hungry(8), SCHEDULE, SHAPE)
    torch.testing.assert_close(model(x, 7), 2 * x + 7)
    torch.testing.assert_close(model(x, torch.tensor([7, 7, 7])), 2 * x + 7)


def test_counts_what_it_costs() -> None:
    model, x = tiny_model(blocks=1), torch.zeros(5, *SHAPE)
    with torch.no_grad():
        model(x, 3)
    assert model.evaluations == 5
    model(x, 3)  # the weights want a gradient
    assert model.evaluations == 5 + 15
    with model.frozen():
        model(x, 3)
        assert model.evaluations == 20 + 5
        model(x.clone().requires_grad_(), 3)
        assert model.evaluations == 25 + 15


def test_sampling_costs_one_per_step_and_sample() -> None:
    model = tiny_model(blocks=1)
    sample(model, model.schedule, torch.zeros(4, *SHAPE), sampler="ddim", steps=10)
    assert model.evaluations == 40


@pytest.mark.parametrize(("room", "batch_size"), [(1, 1), (7, 6), (50, 50), (100, 256)])
def test_halves_the_batch_when_memory_runs_out(room: int, batch_size: int) -> None:
    network = Hungry(room)
    model = DiffusionModel(network, SCHEDULE, SHAPE)
    x = torch.randn(100, *SHAPE, generator=torch.Generator().manual_seed(0))
    t = torch.arange(100)
    expected = 2 * x + t.view(-1, 1, 1, 1)
    assert torch.equal(model(x, t), expected)
    assert model.batch_size == batch_size
    assert model.evaluations == 100
    network.sizes.clear()
    assert torch.equal(model(x, t), expected)
    assert max(network.sizes) <= room  # it remembers


def test_one_sample_that_does_not_fit() -> None:
    model = DiffusionModel(Hungry(0), SCHEDULE, SHAPE)
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.zeros(4, *SHAPE), 0)


def test_other_errors_are_not_retried() -> None:
    model = DiffusionModel(Broken(), SCHEDULE, SHAPE)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        model(torch.zeros(4, *SHAPE), 0)
    assert model.batch_size == 256


def test_the_allocator_of_the_cpu_counts() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("training", [True, False])
def test_frozen_restores_everything(training: bool) -> None:
    network = tiny_unet(blocks=1).train(training)
    flags = [i % 2 == 0 for i, _ in enumerate(network.parameters())]
    for parameter, flag in zip(network.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    model = DiffusionModel(network, SCHEDULE, SHAPE)

    def use_and_fail() -> None:
        with model.frozen():
            assert not network.training
            assert not any(p.requires_grad for p in network.parameters())
            raise KeyError("inside")

    with pytest.raises(KeyError):
        use_and_fail()
    assert network.training is training
    assert [p.requires_grad for p in network.parameters()] == flags


def test_device_of_a_network_without_parameters() -> None:
    assert DiffusionModel(Hungry(1), SCHEDULE, SHAPE).device == torch.device("cpu")


@pytest.mark.parametrize("sampler", ["ddpm", "unipc"])
def test_the_split_of_a_batch_does_not_show(sampler: str) -> None:
    drawn = []
    for batch_size in (1, 3, 8):
        model = tiny_model(blocks=1)
        model.batch_size = batch_size
        fresh = SampleGenerator(0, 8)
        x_T = fresh.normal(SHAPE)
        drawn.append(sample(model, model.schedule, x_T, sampler=sampler, steps=5, generator=fresh))
    torch.testing.assert_close(drawn[0], drawn[2], rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn[1], drawn[2], rtol=0, atol=1e-4)


def test_one_sample_alone_is_the_one_of_the_batch() -> None:
    """The starting noise to the bit, the chain to rounding."""
    model = tiny_model(blocks=1)
    together, alone = SampleGenerator(0, 8, "draw"), SampleGenerator(0, [5], "draw")
    x_all, x_5 = together.normal(SHAPE), alone.normal(SHAPE)
    assert torch.equal(x_5[0], x_all[5])
    both = [
        sample(model, model.schedule, x, steps=5, generator=g) for x, g in ((x_all, together), (x_5, alone))
    ]
    torch.testing.assert_close(both[1][0], both[0][5], rtol=0, atol=1e-4)
