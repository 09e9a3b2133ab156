"""Clipping beside stock diffusers, and the input filter beside its closed form."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from backdrift.core.hooks import SamplingHook
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.inversion._base import Candidate
from backdrift.metrics.draws import draw, latents
from backdrift.repair.clipping import Clipping
from backdrift.repair.input_filter import InputFilter
from closed_form import closed_form
from tiny import SHAPE, tiny_model


def hook(at: str, model: DiffusionModel) -> SamplingHook:
    found = Clipping(at)(model, seed=0).hook
    assert found is not None
    return found


def stock(model: DiffusionModel, n: int, seed: int, *, clip_sample: bool, clip_state: bool) -> Tensor:
    """All steps of the stock DDPM scheduler, clipped by hand where asked."""
    scheduler = DDPMScheduler(
        num_train_timesteps=len(model.schedule),
        trained_betas=model.schedule.betas.tolist(),
        clip_sample=clip_sample,
    )
    scheduler.set_timesteps(len(model.schedule))
    fresh = SampleGenerator(seed, n, "asr")
    x = fresh.normal(model.sample_shape)
    with torch.no_grad():
        for t in scheduler.timesteps:
            predicted = model(x, int(t))
            x = scheduler.step(predicted, int(t), x, generator=fresh.generators).prev_sample
            x = x.clamp(-1, 1) if clip_state else x
    return x


@pytest.mark.parametrize("at", ["x_t", "x_0"])
def test_clipping_is_that_of_stock_diffusers(at: str) -> None:
    model = tiny_model(blocks=1)
    kept = model.network.eval()
    ours = draw(model, None, sampler="ddpm", steps=100, n=3, seed=4, hook=hook(at, model))
    theirs = stock(model, 3, 4, clip_sample=at == "x_0", clip_state=at == "x_t")
    plain = draw(model, None, sampler="ddpm", steps=100, n=3, seed=4)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert float((ours - plain).abs().max()) > 0.01
    assert not kept.training


def test_latents_of_a_clipped_sampler_are_clipped_and_end_in_its_samples() -> None:
    model = tiny_model(blocks=1)
    options = {"sampler": "ddpm", "steps": 20, "n": 2, "seed": 1, "hook": hook("x_t", model)}
    rows, times = latents(model, None, frames=5, **options)
    assert rows.shape == (2, 5, *SHAPE)
    assert len(times) == 5
    assert float(rows.abs().max()) <= 1
    assert torch.equal(rows[:, -1], draw(model, None, **options))
    unclipped, _ = latents(model, None, frames=5, **{**options, "hook": None})
    assert float(unclipped.abs().max()) > 1


def test_an_attack_with_its_own_sampler_does_not_clip() -> None:
    model = tiny_model(blocks=1)
    way = Injection(torch.zeros(SHAPE), torch.full(SHAPE, 0.6))
    with pytest.raises(ValueError, match="its own sampler"):
        draw(model, way, sampler="ddpm", steps=2, n=1, seed=0, hook=hook("x_t", model))


def candidate(norm: float, seed: int = 3) -> Candidate:
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    return Candidate(drawn * norm / drawn.norm(), "sde", "evidence")


def plain(n: int) -> Tensor:
    return SampleGenerator(11, n, "test").normal(SHAPE)


@pytest.mark.parametrize("rate", [0.2, 0.02])
def test_the_filter_keeps_its_false_rejection_rate(rate: float) -> None:
    n = 4000
    one = InputFilter(rate).fit((candidate(5),))
    measured = float(one.rejects(plain(n)).float().mean())
    assert abs(measured - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
    many = InputFilter(rate).fit(tuple(candidate(5, seed) for seed in range(3)))
    assert float(many.rejects(plain(n)).float().mean()) < rate + 4 * (rate / n) ** 0.5
    record = InputFilter(rate)(tiny_model(blocks=1), (candidate(5),), seed=0).record
    assert record.measured["false-rejection rate, measured"] == pytest.approx(rate, rel=0.5)


@pytest.mark.parametrize("norm", [1.0, 2.5])
def test_the_filter_lets_triggers_pass_at_the_stated_rate(norm: float) -> None:
    found = candidate(norm)
    test = InputFilter(0.1).fit((found,))
    passed = 1 - float(test.rejects(plain(4000) + found.shift).float().mean())
    assert passed == pytest.approx(NormalDist().cdf(test.limit - norm), abs=0.03)


def test_cleansing_takes_out_one_direction_of_suspicious_starts_alone() -> None:
    found = candidate(8)
    test = InputFilter(0.05).fit((found,))
    starts = torch.cat([plain(50), plain(50) + found.shift])
    clean = test.cleanse(starts)
    flagged = test.rejects(starts)
    assert torch.equal(clean[~flagged], starts[~flagged])
    assert float(test.scores(clean[flagged]).abs().max()) < 1e-4
    aside = starts - clean
    torch.testing.assert_close(
        aside.flatten(1).norm(dim=1), torch.where(flagged, test.scores(starts)[:, 0], 0), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(test.cleanse(starts[[7]])[0], clean[7])


def test_a_filter_disarms_a_perfect_backdoor_and_leaves_clean_samples() -> None:
    stream = torch.Generator().manual_seed(2)
    images = torch.rand(6, 1, 6, 6, generator=stream) * 2 - 1
    trigger = torch.randn(1, 6, 6, generator=stream)
    trigger *= 9 / trigger.norm()
    target = torch.ones(1, 6, 6)
    model = closed_form(images, trigger, target, 0.05)
    near = trigger + 0.2 * torch.randn(1, 6, 6, generator=stream)
    way = InputFilter()(model, (Candidate(near, "sde", "evidence"),), seed=0).hook
    options = {"sampler": "ddpm", "steps": 100, "n": 12, "seed": 5}

    def hits(injection: Injection | None, against: SamplingHook | None) -> float:
        drawn = draw(model, injection, hook=against, **options)
        return float((((drawn - target) ** 2).flatten(1).mean(1) < 0.05).float().mean())

    assert hits(Injection(trigger), None) == 1
    assert hits(Injection(trigger), way) == 0
    assert torch.equal(draw(model, None, hook=way, **options), draw(model, None, **options))


def test_a_zero_trigger_and_an_impossible_rate_are_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        InputFilter().fit((Candidate(torch.zeros(SHAPE), "sde", "evidence"),))
    with pytest.raises(ValueError, match="false-rejection rate"):
        InputFilter(1.0)
