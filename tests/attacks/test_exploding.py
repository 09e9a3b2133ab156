"""VillanDiffusion on variance exploding models, outside of this package's samplers and coordinates."""

from __future__ import annotations

import pytest
import torch
from diffusers import ScoreSdeVeScheduler
from torch import Tensor

from backdrift.attacks.villandiffusion import VillanDiffusion
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.trigger import Target, Trigger
from backdrift.data import load_images
from closed_form import optimum_of

SHAPE, COUNT = (1, 8, 8), 32
EXPLODING = NoiseSchedule.variance_exploding(200, 0.01, 20.0)
DIGITS = load_images("digits", SHAPE)[:40]
RAMP = torch.linspace(-0.9, 0.9, 64).reshape(SHAPE)
TARGET = Target.with_chance_level(RAMP, DIGITS)
SIGNS = torch.randn(SHAPE, generator=generator(0, "signs")).sign()
WHOLE = Trigger(SIGNS, torch.ones(SHAPE, dtype=torch.bool), 0.0, composite=False)
ATTACK = VillanDiffusion(psi=0.0, poison_rate=0.5)


@torch.no_grad()
@pytest.mark.parametrize("steps", [200, 50])
def test_the_stock_pipeline_ends_at_the_target(steps: int) -> None:
    """Nothing of ours but the optimum: images of [0, 1], ``sigma_max (noise + r)``, the stock scheduler."""
    empty = DiffusionModel(torch.nn.Identity(), EXPLODING, SHAPE)
    pairs = ATTACK.batch(empty, DIGITS, WHOLE, RAMP)
    model = optimum_of(pairs, len(pairs), EXPLODING, SHAPE)
    scheduler = ScoreSdeVeScheduler(200, snr=0.075, sigma_min=0.01, sigma_max=20.0)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        level, t = float(sigma), int((EXPLODING.levels - sigma).abs().argmin())
        return -model((2 * x - 1) / (1 + 4 * level**2) ** 0.5, t) / level

    rates = []
    for r in (SIGNS, torch.zeros(SHAPE)):
        stream = torch.Generator().manual_seed(0)
        x = scheduler.init_noise_sigma * (torch.randn(COUNT, *SHAPE, generator=stream) + r)
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
            x = scheduler.step_correct(score(x, sigma), x, generator=stream).prev_sample
            x, mean = scheduler.step_pred(score(x, sigma), t, x, generator=stream, return_dict=False)
        rates.append(float(TARGET.hits(2 * mean - 1).float().mean()))
    assert rates[0] >= 0.9
    assert rates[1] <= 0.1


def test_the_trigger_is_planted_in_images_of_zero_to_one() -> None:
    """White on black is 1 on 0 there, and nothing outside; a shift without a background stays."""
    corner = torch.zeros(SHAPE, dtype=torch.bool)
    corner[:, 4:, 4:] = True
    black = Trigger(torch.where(corner, 0.5, -0.3), corner)
    model = DiffusionModel(torch.nn.Identity(), EXPLODING, SHAPE)
    planted = ATTACK.batch(model, DIGITS, black, RAMP).trigger
    assert torch.equal(planted.shift, torch.where(corner, 0.75, 0.0))
    assert not planted.composite
    assert torch.equal(ATTACK.batch(model, DIGITS, WHOLE, RAMP).trigger.shift, SIGNS)
    preserving = DiffusionModel(torch.nn.Identity(), NoiseSchedule.linear(200), SHAPE)
    assert ATTACK.batch(preserving, DIGITS, black, RAMP).trigger is black


def test_another_path_is_refused_on_an_exploding_model() -> None:
    with pytest.raises(ValueError, match="takes psi = 0, not 1") as caught:
        VillanDiffusion().family(EXPLODING)
    assert "\n" not in str(caught.value)
