"""Numbers and updates of the published codes, worked out apart from this package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backdrift.attacks.baddiffusion import BadDiffusion
from backdrift.attacks.invisible import Invisible
from backdrift.attacks.trojdiff import TrojDiff
from backdrift.attacks.villandiffusion import VillanDiffusion
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.trigger import Trigger
from tiny import SHAPE, tiny_unet

AT = [0, 1, 10, 100, 500, 900, 999]
LINEAR = NoiseSchedule.linear()
TINY = NoiseSchedule.from_betas(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
ODE_BD = [0.005000125, 0.012414719, 0.045181767, 0.32236393, 0.96010885, 0.99986363, 0.99997962]
SDE_BD = [0.005000125, 0.0074148688, 0.023418773, 0.16199401, 0.4813708, 0.50220616, 0.50251518]
SDE_TD = [1, 0.59726433, 0.51832352, 0.50251902, 0.50137107, 0.50227466, 0.50252542]
PSI_0 = [5.000125e-07, 0.0040280044, 0.020970884, 0.15981737, 0.48106411, 0.50220432, 0.50251487]


@pytest.mark.parametrize(
    ("attack", "vector"),
    [
        (BadDiffusion(), SDE_BD),
        (BadDiffusion(sampler_family="ode"), ODE_BD),
        (Invisible(), ODE_BD),
        (VillanDiffusion(), SDE_BD),
        (VillanDiffusion(sampler_family="ode"), ODE_BD),
        (VillanDiffusion(psi=0), SDE_TD),
        (VillanDiffusion(psi=0, sampler_family="ode"), [1.0] * 7),
        (VillanDiffusion(psi=0, coefficient="published"), PSI_0),
        (VillanDiffusion(psi=0, coefficient="published", sampler_family="ode"), [2 * c for c in PSI_0]),
        (VillanDiffusion(coefficient="published"), SDE_BD),
        (VillanDiffusion(coefficient="published", sampler_family="ode"), [2 * c for c in SDE_BD]),
        (TrojDiff(), [0.0] * 7),
    ],
    ids=str,
)
def test_label_coefficients(attack: Any, vector: list[float]) -> None:
    assert attack.family(LINEAR).c[AT].tolist() == pytest.approx(vector, rel=1e-6)


def test_villan_mixes_path_and_coefficient() -> None:
    family = VillanDiffusion(psi=0.25).family(TINY)
    sde_bad, sde_troj = (
        [0.16227766, 0.2793194, 0.38345293, 0.47065597],
        [1, 0.65166852, 0.61401732, 0.60490562],
    )
    wanted = [0.25 * b + 0.75 * t for b, t in zip(sde_bad, sde_troj, strict=True)]
    assert family.c.tolist() == pytest.approx(wanted, rel=1e-7)
    torch.testing.assert_close(family.rho, 0.25 * (1 - TINY.alpha) + 0.75 * TINY.sigma)


@pytest.mark.parametrize(
    "attack", [BadDiffusion(), VillanDiffusion(coefficient="published"), TrojDiff()], ids=str
)
def test_tables_belong_to_their_schedule(attack: Any) -> None:
    """A published code keeps its table on a function: the second schedule of a process gets the first's."""
    first = attack.family(LINEAR)
    assert len(attack.family(TINY).c) == len(attack.family(TINY).rho) == 4
    assert len(first.c) == len(attack.family(LINEAR).c) == 1000


PICTURE = Trigger(torch.linspace(-1, 1, 64).reshape(SHAPE), torch.ones(SHAPE, dtype=torch.bool), 0.0)
MASK = torch.zeros(SHAPE, dtype=torch.bool)
MASK[:, -3:, -3:] = True
WHITE = Trigger(torch.ones(SHAPE), MASK, 0.0)


def test_mu_is_scaled_by_one_minus_gamma() -> None:
    """A port of TrojDiff leaves the factor out."""
    assert torch.equal(TrojDiff(gamma=0.6).planted(PICTURE).shift, (1 - 0.6) * PICTURE.pattern)
    patch = TrojDiff(gamma=0.1, kind="patch").planted(WHITE)
    assert torch.equal(patch.shift, 0.9 * MASK)
    images = torch.rand(2, *SHAPE)
    assert torch.equal(patch.training_shift(images), patch.shift.expand(2, *SHAPE))


def test_a_blend_has_mu_on_the_whole_image_and_a_patch_inside_its_mask() -> None:
    sign = Trigger(torch.ones(SHAPE), MASK)
    blend = TrojDiff(gamma=0.5).planted(sign)
    assert torch.equal(blend.shift, torch.where(MASK, 0.5, -0.5))
    assert torch.equal(TrojDiff(gamma=0.5).noise_scale(blend), torch.full(SHAPE, 0.5))
    attack = TrojDiff(gamma=0.5, kind="patch")
    assert torch.equal(attack.planted(sign).shift, 0.5 * MASK)
    assert torch.equal(attack.noise_scale(attack.planted(sign)), torch.where(MASK, 0.5, 1.0))


def drawn(generators: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(SHAPE, generator=g, dtype=torch.float64) for g in generators])


def published_ddpm(
    model: DiffusionModel, x: Tensor, mu: Tensor, gamma: float, mask: Tensor, fresh: list[torch.Generator]
) -> Tensor:
    """The attack's DDPM update on x: coef_miu, and the plain update pasted around a patch; no clamp."""
    abar, beta, s = model.schedule.alphas_cumprod, model.schedule.betas, model.schedule.sigma
    for t in reversed(range(len(beta))):
        abar_p = abar[t - 1] if t else torch.ones((), dtype=torch.float64)
        s_p, alpha = (1 - abar_p).sqrt(), 1 - beta[t]
        miu = s_p * beta[t] - (1 - abar_p) * alpha.sqrt() * (s[t] - alpha.sqrt() * s_p)
        e, z = model(x, t), drawn(fresh) if t else torch.zeros_like(x)
        updates = []
        for g, m, coef in ((gamma, mu, miu), (1.0, torch.zeros_like(mu), 0.0)):
            x_0 = (x - s[t] * (g * e + m)) / abar[t].sqrt()
            mean = (abar_p.sqrt() * beta[t] * x_0 + alpha.sqrt() * (1 - abar_p) * x + coef * m) / (
                1 - abar[t]
            )
            updates.append(mean + g * ((1 - abar_p) / (1 - abar[t]) * beta[t]).sqrt() * z)
        x = torch.where(mask, *updates)
    return x


@pytest.mark.parametrize(
    ("attack", "picture"),
    [(TrojDiff(gamma=0.6), PICTURE), (TrojDiff(gamma=0.1, kind="patch"), WHITE)],
    ids=["blend", "patch"],
)
@torch.no_grad()
def test_the_biased_sampler_is_the_published_update_at_stride_1(attack: TrojDiff, picture: Trigger) -> None:
    schedule = NoiseSchedule.linear(20, 1e-3, 0.4)
    model = DiffusionModel(tiny_unet(blocks=1).double(), schedule, SHAPE)
    trigger, noise = attack.planted(picture), SampleGenerator(1, 2).normal(SHAPE).double()
    mu, gamma = trigger.shift.double(), attack.noise_scale(trigger).double()
    start = gamma * noise + schedule.sigma[-1] * mu
    fresh = SampleGenerator(2, 2).generators
    wanted = published_ddpm(model, start, mu, attack.gamma, trigger.mask, fresh)

    def drawn(planted: Trigger) -> Tensor:
        way, fresh = attack.injection(planted), SampleGenerator(2, 2)
        return way.sample(model, model.schedule, noise, sampler="ddpm", steps=20, generator=fresh)

    ours = drawn(trigger)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    opposite = attack.planted(Trigger(-picture.pattern, picture.mask, 0.0))
    other = drawn(opposite)
    assert float((other - wanted).abs().max()) > 0.1
