"""Variance exploding models as variance preserving ones, against stock diffusers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import PREDICTOR_CORRECTOR, SNR, make_scheduler, sample, usual_sampler
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import coefficient, rho_table
from tiny import tiny_unet

PUBLISHED = NoiseSchedule.variance_exploding(2000, 0.01, 380.0)
"""Of VillanDiffusion's NCSN model."""
SHORT = NoiseSchedule.variance_exploding(20, 0.05, 5.0)


def stock(**changes: Any) -> ScoreSdeVeScheduler:
    settings = {"num_train_timesteps": 20, "sigma_min": 0.05, "sigma_max": 5.0, "snr": SNR}
    return ScoreSdeVeScheduler(**{**settings, **changes})


def test_the_levels_are_those_of_stock_diffusers_and_the_process_keeps_its_variance() -> None:
    scheduler = stock(num_train_timesteps=2000, sigma_min=0.01, sigma_max=380.0)
    expected = scheduler.discrete_sigmas.double()
    torch.testing.assert_close(PUBLISHED.levels, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(PUBLISHED.alpha**2 + PUBLISHED.sigma**2, torch.ones(2000).double())
    assert PUBLISHED.exploding
    assert not NoiseSchedule.linear().exploding
    assert float(PUBLISHED.betas.min()) > 0


def test_add_noise_is_that_of_stock_diffusers_in_other_coordinates() -> None:
    x_0, noise = torch.rand(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 7, 18, 19])
    z_t = stock().add_noise(x_0, noise, t)
    alpha, _ = SHORT.at(t, x_0)
    torch.testing.assert_close(SHORT.add_noise(2 * x_0 - 1, noise, t), alpha * (2 * z_t - 1))


def test_the_shift_of_the_published_attack_is_rho_equal_to_sigma() -> None:
    """``rho_t = level_t``; ``C_t = level_t / (level_t + level_{t-1})``, and 1 for ODE samplers."""
    levels = torch.exp(torch.linspace(math.log(0.01), math.log(380), 2000, dtype=torch.float64))
    before = torch.cat([torch.zeros(1).double(), levels[:-1]])
    rho = rho_table(PUBLISHED, "trojdiff")
    # a shift level_t r of z_t is 2 alpha_t level_t r of x_t
    torch.testing.assert_close(rho, 2 * PUBLISHED.alpha * levels, rtol=1e-12, atol=0)
    sde, ode = (coefficient(PUBLISHED, rho, solver) for solver in ("sde", "ode"))
    torch.testing.assert_close(sde, levels / (levels + before), rtol=1e-8, atol=0)
    torch.testing.assert_close(ode, torch.ones(2000).double(), rtol=1e-9, atol=0)
    assert float(sde[0]) == pytest.approx(1)
    assert float(sde[1000]) == pytest.approx(0.501319, abs=1e-6)


@pytest.mark.parametrize("kind", ["fourier", "positional"])
def test_the_noise_is_minus_level_times_the_score(kind: str) -> None:
    network = tiny_unet(blocks=1, time_embedding_type=kind)
    model = DiffusionModel(network, SHORT, (1, 8, 8), "score")
    x_t = SampleGenerator(0, 3).normal((1, 8, 8))
    t = torch.tensor([0, 7, 19])
    with torch.no_grad():
        level = SHORT.levels[t].float()
        z_t = (x_t * (1 + 4 * level**2).sqrt()[:, None, None, None] + 1) / 2
        expected = -level[:, None, None, None] * network(z_t, level).sample
        torch.testing.assert_close(model(x_t, t), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(x_t[1:2], 7), expected[1:2], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sample_equals_the_stock_pipeline() -> None:
    """Its start, ``sigma_max`` times noise in images of [0, 1], in our coordinates."""
    network = tiny_unet(blocks=1, time_embedding_type="fourier", in_channels=3, out_channels=3)
    pipeline = ScoreSdeVePipeline(network, stock())
    pipeline.set_progress_bar_config(disable=True)
    fresh = [torch.Generator().manual_seed(k) for k in range(4)]
    expected = pipeline(4, num_inference_steps=20, generator=fresh, output_type="np").images
    ours = SampleGenerator(0, 4)
    ours.generators = [torch.Generator().manual_seed(k) for k in range(4)]
    z_T = 5.0 * ours.normal((3, 8, 8))
    x_T = SHORT.alpha[-1].float() * (2 * z_T - 1)
    model = DiffusionModel(network, SHORT, (3, 8, 8), "score")
    drawn = sample(model, SHORT, x_T, sampler=PREDICTOR_CORRECTOR, steps=20, generator=ours)
    assert float(drawn.std()) > 0.1
    images = (drawn / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(images, torch.from_numpy(expected), rtol=0, atol=2e-3)
    assert model.evaluations == 4 * 2 * 20


def known(image: Tensor) -> Any:
    """The denoiser of a data set of one image."""

    def denoise(x_t: Tensor, t: Tensor | int, /) -> Tensor:
        alpha, sigma = SHORT.at(t, x_t)
        return (x_t - alpha * image) / sigma

    return denoise


@pytest.mark.parametrize("sampler", [PREDICTOR_CORRECTOR, "ddpm", "ddim", "dpm-solver++", "heun"])
@pytest.mark.parametrize("steps", [2, 7, 19])
def test_any_stride_ends_at_the_only_image(sampler: str, steps: int) -> None:
    image = torch.linspace(-0.9, 0.9, 64).reshape(1, 8, 8)
    fresh = SampleGenerator(0, 3)
    start, options = fresh.normal((1, 8, 8)), {"sampler": sampler, "steps": steps, "generator": fresh}
    drawn = sample(known(image), SHORT, start, **options)
    torch.testing.assert_close(drawn, image.expand_as(drawn), rtol=0, atol=1e-3)


def test_the_corrector_pulls_a_poisoned_state_towards_half_of_its_shift() -> None:
    """``(d + k / 2) / (d + k)``, k = 2 snr^2: the docstring of the sampler."""
    schedule, shape = NoiseSchedule.variance_exploding(100, 0.01, 50.0), (1, 32, 32)
    r = SampleGenerator(1, 1).normal(shape)[0].sign() / 4
    image = torch.zeros(shape)
    shifts: list[float] = []
    rho, c = rho_table(schedule, "trojdiff"), coefficient(schedule, rho_table(schedule, "trojdiff"), "sde")

    def denoise(x_t: Tensor, t: Tensor | int, /) -> Tensor:
        """Poisoned rows alone: always in poison mode."""
        alpha, sigma = schedule.at(t, x_t)
        now = (x_t - alpha * image) / sigma
        shifts.append(float((now.mean(0) * r).sum() / r.square().sum()))
        return (x_t - alpha * image - float(rho[int(t)]) * r) / sigma + float(c[int(t)]) * r

    fresh = SampleGenerator(0, 64)
    start = fresh.normal(shape) + r
    drawn = sample(denoise, schedule, start, sampler=PREDICTOR_CORRECTOR, steps=100, generator=fresh)
    d, k = (50 / 0.01) ** (1 / 99) - 1, 2 * SNR**2
    assert shifts[0] == pytest.approx(1, abs=0.05)
    half_way = sum(shifts[100:140]) / 40
    assert half_way == pytest.approx((d + k / 2) / (d + k), abs=0.02)
    torch.testing.assert_close(drawn.mean(0), image, rtol=0, atol=0.02)


def test_a_hook_sees_every_state_in_our_coordinates_and_its_result_goes_on() -> None:
    image = torch.linspace(-0.9, 0.9, 64).reshape(1, 8, 8)
    seen: list[tuple[int, float]] = []

    def watch(x: Tensor, t: int) -> Tensor:
        seen.append((t, float(x.square().mean().sqrt())))
        return x

    def drawn(hook: Any) -> Tensor:
        fresh, options = SampleGenerator(0, 8), {"sampler": PREDICTOR_CORRECTOR, "steps": 20}
        start = fresh.normal((1, 8, 8))
        return sample(known(image), SHORT, start, generator=fresh, post_step=hook, **options)

    torch.testing.assert_close(drawn(watch), drawn(None), rtol=0, atol=1e-5)
    assert [t for t, _ in seen] == list(range(19, -1, -1))
    assert all(0.4 < size < 1.6 for _, size in seen)  # from 10 down to 0.5 in those of the sampler
    assert float(drawn(lambda x, t: x.clamp(-0.1, 0.1)).abs().max()) <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("schedule", "options", "line"),
    [
        (NoiseSchedule.linear(20), {}, "for variance exploding models"),
        (SHORT, {"steps": 1}, r"lie in 2\.\.20, not 1"),
        (SHORT, {"steps": 21}, r"lie in 2\.\.20, not 21"),
        (SHORT, {"clip_x0": True}, "no x_0 clipping"),
        (SHORT, {"generator": None}, "pass a SampleGenerator"),
    ],
)
def test_what_it_cannot_do_is_one_line(schedule: NoiseSchedule, options: dict[str, Any], line: str) -> None:
    given = {"sampler": PREDICTOR_CORRECTOR, "steps": 5, "generator": SampleGenerator(0, 2), **options}
    with pytest.raises(ValueError, match=line) as caught:
        sample(known(torch.zeros(1, 8, 8)), schedule, torch.zeros(2, 1, 8, 8), **given)
    assert "\n" not in str(caught.value)


def test_the_usual_sampler_is_that_of_the_stock_pipeline() -> None:
    assert usual_sampler(None, SHORT) == usual_sampler("sde", SHORT) == PREDICTOR_CORRECTOR
    assert (
        usual_sampler("sde", NoiseSchedule.linear())
        == usual_sampler(None, NoiseSchedule.linear())
        == "ddpm"
    )
    assert usual_sampler("ode", SHORT) == usual_sampler("ode", NoiseSchedule.linear()) == "ddim"
    with pytest.raises(ValueError, match=PREDICTOR_CORRECTOR):
        make_scheduler("euler", SHORT)


@pytest.mark.parametrize("ends", [(0, 1), (1, 1), (2, 1), (-1, 1), (1, math.inf)])
def test_levels_ascend_from_above_zero(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="noise levels ascend"):
        NoiseSchedule.variance_exploding(10, *ends)
