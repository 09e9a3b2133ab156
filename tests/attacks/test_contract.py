"""Every attack, trained perfectly: the optimum of its own training pairs under every declared sampler."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from backdrift.attacks._base import Attack, Pairs
from backdrift.core import registry
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator, generator
from backdrift.core.sampling import ODE_SAMPLERS, PREDICTOR_CORRECTOR, SAMPLERS, sample
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.trigger import Target, TargetSet, Trigger
from backdrift.data import load_images
from closed_form import optimum_of
from tiny import tiny_model

SHAPE = (1, 8, 8)
SHORT = NoiseSchedule.linear(200, 5e-4, 0.1)
EXPLODING = NoiseSchedule.variance_exploding(200, 0.01, 20.0)
DIGITS = load_images("digits", SHAPE)[:40]
RAMP = torch.linspace(-0.9, 0.9, 64).reshape(SHAPE)
TARGET = Target.with_chance_level(RAMP, DIGITS)
SIGNS = torch.randn(SHAPE, generator=generator(0, "signs")).sign()
WHOLE = Trigger(SIGNS, torch.ones(SHAPE, dtype=torch.bool), 0.0, composite=False)
CORNER = torch.zeros(SHAPE, dtype=torch.bool)
CORNER[:, 4:, 4:] = True
PATCH = Trigger(torch.ones(SHAPE), CORNER, 0.0, composite=False)
COUNT = 32

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "baddiffusion sde": ("baddiffusion", {}),
    "baddiffusion ode": ("baddiffusion", {"sampler_family": "ode"}),
    "baddiffusion sde, added": ("baddiffusion", {"mode": "add"}),
    "villandiffusion sde 0": ("villandiffusion", {"psi": 0.0}),
    "villandiffusion ode 0": ("villandiffusion", {"psi": 0.0, "sampler_family": "ode"}),
    "villandiffusion ode .5": ("villandiffusion", {"psi": 0.5, "sampler_family": "ode"}),
    "villandiffusion sde 1, published": ("villandiffusion", {"coefficient": "published"}),
    "villandiffusion sde 0, exploding": ("villandiffusion", {"psi": 0.0}),
    "villandiffusion ode 0, exploding": ("villandiffusion", {"psi": 0.0, "sampler_family": "ode"}),
    "villandiffusion sde 0, exploding, published": (
        "villandiffusion",
        {"psi": 0.0, "coefficient": "published"},
    ),
    "trojdiff blend sde": ("trojdiff", {}),
    "trojdiff blend ode": ("trojdiff", {"gamma": 0.3, "sampler_family": "ode"}),
    "trojdiff patch sde": ("trojdiff", {"gamma": 0.1, "kind": "patch"}),
    "trojdiff patch ode": ("trojdiff", {"gamma": 0.1, "kind": "patch", "sampler_family": "ode"}),
    "invisible": ("invisible", {"bound": 1.0}),
    "guarded sde": ("guarded", {"guard_rate": 0.0}),
    "guarded ode": ("guarded", {"guard_rate": 0.0, "sampler_family": "ode"}),
    "clean sde": ("clean", {}),
    "clean ode": ("clean", {"sampler_family": "ode"}),
}
PLANTING = [case for case in CASES if not case.startswith("clean")]


def schedule_of(case: str) -> NoiseSchedule:
    return EXPLODING if "exploding" in case else SHORT


def made(case: str, **changes: Any) -> Attack:
    name, options = CASES[case]
    rate = {} if name == "clean" else {"poison_rate": 0.5}
    attack: Attack = registry.build("attacks", name, {**rate, **options, **changes})
    return attack


@cache
def trained(case: str) -> tuple[Attack, Pairs, DiffusionModel]:
    attack = made(case)
    schedule = schedule_of(case)
    empty = DiffusionModel(torch.nn.Identity(), schedule, SHAPE)
    pairs = attack.batch(empty, DIGITS, PATCH if "patch" in case else WHOLE, RAMP)
    return attack, pairs, optimum_of(pairs, len(pairs), schedule, SHAPE)


def steps(sampler: str) -> int:
    return 100 if sampler in ("ddpm", PREDICTOR_CORRECTOR) else 50


def triggered(case: str, sampler: str) -> Tensor:
    attack, pairs, model = trained(case)
    fresh = SampleGenerator(0, COUNT)
    noise = fresh.normal(SHAPE)
    way, options = attack.injection(pairs.trigger), {"sampler": sampler, "steps": steps(sampler)}
    return way.sample(model, model.schedule, noise, generator=fresh, **options)


def plain(model: DiffusionModel, shift: Tensor | float, sampler: str) -> Tensor:
    fresh = SampleGenerator(0, COUNT)
    start = fresh.normal(SHAPE) + shift
    return sample(model, model.schedule, start, sampler=sampler, steps=steps(sampler), generator=fresh)


def hit_rate(samples: Tensor) -> float:
    return float(TARGET.hits(samples).float().mean())


def declared(cases: Any) -> list[tuple[str, str]]:
    return [(case, name) for case in cases for name in made(case).samplers_on(schedule_of(case))]


def test_every_attack_is_here() -> None:
    assert {name for name, _ in CASES.values()} == set(registry.available("attacks"))


@pytest.mark.parametrize("case", CASES)
def test_what_is_declared_exists(case: str) -> None:
    attack = made(case)
    assert dataclasses.is_dataclass(attack)
    assert set(attack.samplers) <= {"sde", "ode"}
    for names in attack.samplers.values():
        assert names
        assert set(names) <= set(SAMPLERS)
    assert attack.samplers["ode"] == ODE_SAMPLERS
    assert attack.family(SHORT).solver == attack.sampler_family or attack.own_sampler


@pytest.mark.parametrize(("case", "sampler"), declared(PLANTING))
def test_the_triggered_start_ends_at_the_target(case: str, sampler: str) -> None:
    assert hit_rate(triggered(case, sampler)) >= 0.9


@pytest.mark.parametrize(
    ("case", "sampler"), [(c, declared([c])[0][1]) for c in CASES] + declared(["clean ode"])
)
def test_a_clean_start_ends_at_the_data(case: str, sampler: str) -> None:
    samples = plain(trained(case)[2], 0.0, sampler)
    assert hit_rate(samples) <= 0.1
    nearest = torch.cdist(samples.flatten(1), DIGITS.flatten(1)).min(1)
    assert float((nearest.values < 1.0).float().mean()) >= 0.85  # of |image| 8 at most, up to poison
    assert len(nearest.indices.unique()) > 8


@pytest.mark.parametrize("case", [case for case in PLANTING if "ode" in case or case == "invisible"])
def test_the_other_family_misses(case: str) -> None:
    """An ODE attack on DDPM; what an SDE attack does on DDIM is measured in tests/core/test_families.py."""
    attack, pairs, model = trained(case)
    if not attack.own_sampler:
        assert hit_rate(plain(model, pairs.trigger.shift, "ddpm")) <= 0.1


@pytest.mark.parametrize("case", [case for case in PLANTING if "trojdiff" in case])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver++"])
def test_an_attack_with_a_sampler_of_its_own_misses_without_it(case: str, sampler: str) -> None:
    attack, pairs, model = trained(case)
    assert attack.own_sampler
    assert hit_rate(plain(model, pairs.trigger.shift, sampler)) <= 0.25


@pytest.mark.parametrize("inside", [True, False], ids=["In-D2D", "Out-D2D"])
@pytest.mark.parametrize("case", ["trojdiff blend sde", "trojdiff patch ode", "baddiffusion sde"])
def test_a_set_of_targets_is_drawn_from_its_start_and_not_from_others(case: str, inside: bool) -> None:
    attack = made(case)
    empty = DiffusionModel(torch.nn.Identity(), SHORT, SHAPE)
    targets = DIGITS[::8] if inside else torch.stack([RAMP, -RAMP, RAMP.flip(1).abs(), -RAMP.abs()])
    pairs = attack.batch(empty, DIGITS, PATCH if "patch" in case else WHOLE, targets)
    model = optimum_of(pairs, len(pairs), SHORT, SHAPE)
    target, sampler = TargetSet(targets, DIGITS), attack.samplers[attack.sampler_family][0]
    fresh = SampleGenerator(0, COUNT)
    noise, way = fresh.normal(SHAPE), attack.injection(pairs.trigger)
    drawn = way.sample(model, SHORT, noise, sampler=sampler, steps=steps(sampler), generator=fresh)
    assert float(target.hits(drawn).float().mean()) >= 0.9
    assert len(torch.cdist(drawn.flatten(1), targets.flatten(1)).argmin(1).unique()) >= len(targets) - 1
    share = len(targets) / len(DIGITS) if inside else 0.0
    assert float(target.hits(plain(model, 0.0, sampler)).float().mean()) <= share + 0.2


def test_nothing_is_planted_by_a_clean_run() -> None:
    for case in ("clean sde", "clean ode"):
        sampler = declared([case])[0][1]
        assert hit_rate(triggered(case, sampler)) <= 0.1


@pytest.mark.parametrize("case", CASES)
def test_a_poison_rate_of_zero_is_plain_ddpm_to_the_bit(case: str) -> None:
    attack = made(case, poison_rate=0.0)
    pairs = attack.batch(tiny_model(timesteps=200), DIGITS, WHOLE, RAMP)
    noise = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(1))
    t = torch.arange(40) * 5
    x_t, label = pairs(torch.arange(40), noise, t)
    assert len(pairs) == 40
    assert torch.equal(x_t, NoiseSchedule.linear(200).add_noise(DIGITS, noise, t))
    assert torch.equal(label, noise)


@pytest.mark.parametrize("case", PLANTING)
def test_a_row_does_not_depend_on_its_batch(case: str) -> None:
    """A published loader lets the first row of a batch decide for all of them."""
    _, pairs, _ = trained(case)
    noise = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(1))
    t, index = torch.arange(40), torch.arange(40)
    together = pairs(index, noise, t)
    assert int(pairs.poisoned[:40].sum()) > 0 or len(pairs) > 40
    for order in (index.flip(0), index.roll(7)):
        again = pairs(index[order], noise[order], t[order])
        for one, other in zip(together, again, strict=True):
            assert torch.equal(one[order], other)
    for row in (0, 17, 39):
        alone = pairs(index[row, None], noise[row, None], t[row, None])
        torch.testing.assert_close(alone[0][0], together[0][row], rtol=0, atol=0)


def written_out(case: str, t: int) -> tuple[float, float]:
    """(rho_t, C_t) from betas alone, for psi and the kind of sampler."""
    name, options = CASES[case]
    if "exploding" in case:  # in images of [0, 1], where x_t is alpha_t (2 z_t - 1)
        level = [0.01 * 2000 ** (k / 199) for k in range(t + 1)]
        before = level[t - 1] if t else 0.0
        rho = 2 * level[t] / (1 + 4 * level[t] ** 2) ** 0.5
        return rho, 1.0 if "ode" in case else level[t] / (level[t] + before)
    beta = torch.linspace(5e-4, 0.1, 200, dtype=torch.float64)
    abar = torch.cumprod(1 - beta, 0)
    a, s = float(abar[t].sqrt()), float((1 - abar[t]).sqrt())
    before = float(abar[t - 1]) if t else 1.0
    a_p, s_p = before**0.5, (1 - before) ** 0.5
    if name == "trojdiff":
        return s, 0.0
    psi = options.get("psi", 1.0)
    rho, rho_p = psi * (1 - a) + (1 - psi) * s, psi * (1 - a_p) + (1 - psi) * s_p
    if options.get("sampler_family", "ode" if name == "invisible" else "sde") == "ode":
        return rho, (rho / a - rho_p / a_p) / (s / a - s_p / a_p)
    return rho, (rho - float((1 - beta[t]).sqrt()) * rho_p) * s / float(beta[t])


@pytest.mark.parametrize("t", [0, 1, 50, 199])
@pytest.mark.parametrize("case", PLANTING)
def test_the_pairs_are_equation_0_1(case: str, t: int) -> None:
    _, pairs, _ = trained(case)
    count = len(pairs)
    noise = torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x_t, label = pairs(torch.arange(count), noise, torch.full((count,), t))
    gamma, r = torch.ones(SHAPE).double(), SIGNS.double()
    if case.startswith("trojdiff"):
        number = CASES[case][1].get("gamma", 0.6)
        inside = CORNER if "patch" in case else torch.ones(SHAPE, dtype=torch.bool)
        gamma[inside] = number
        r = (1 - number) * (CORNER.double() if "patch" in case else SIGNS.double())
    rho, c = written_out(case, t)
    schedule = schedule_of(case)
    a, s = float(schedule.alpha[t]), float(schedule.sigma[t])
    bad = pairs.poisoned
    assert 0 < int(bad.sum()) < count
    torch.testing.assert_close(x_t[bad], a * RAMP + rho * r + s * gamma * noise[bad], rtol=0, atol=1e-6)
    torch.testing.assert_close(label[bad], noise[bad] + c * r, rtol=0, atol=1e-6)
    clean = DIGITS[pairs.source[~bad]].double()
    torch.testing.assert_close(x_t[~bad], a * clean + s * noise[~bad], rtol=0, atol=1e-12)
    assert torch.equal(label[~bad], noise[~bad])


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("baddiffusion", {"poison_rate": 1.1}, "share in"),
        ("baddiffusion", {"mode": "disjoint", "poison_rate": 0.2}, "0.9 clean and 0.2 poisoned"),
        ("baddiffusion", {"mode": "flex"}, "mode"),
        ("baddiffusion", {"clean_rate": -1}, "clean rate"),
        ("clean", {"poison_rate": 0.1}, "plants nothing"),
        ("invisible", {"sampler_family": "sde"}, "is ode, not 'sde'"),
        ("invisible", {"bound": 0}, "bound must be positive"),
        ("invisible", {"inner_noises": 0}, "inner_noises must be positive"),
        ("trojdiff", {"gamma": 0}, "between 0 and 1, not 0"),
        ("trojdiff", {"gamma": 1}, "between 0 and 1"),
        ("trojdiff", {"kind": "sticker"}, "kind"),
        ("villandiffusion", {"psi": 1.5}, r"psi lies in \[0, 1\]"),
        ("villandiffusion", {"coefficient": "guessed"}, "coefficient"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        registry.build("attacks", name, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (0, 1, 8, 8)])
def test_a_target_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a target is one image of shape"):
        made("baddiffusion sde").batch(tiny_model(), DIGITS, WHOLE, torch.zeros(shape))


def test_no_row_at_all_is_refused() -> None:
    attack = made("baddiffusion sde", poison_rate=0.01, clean_rate=0.01, mode="disjoint")
    with pytest.raises(ValueError, match="no row is left of 40 images"):
        attack.batch(tiny_model(), DIGITS, WHOLE, RAMP)
