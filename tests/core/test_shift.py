"""Properties that define the shift tables: what a sampler does with a label of eps + C_t r."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import ddim_step, sample, strided_timesteps
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, coefficient, drift, rho_table, stride_corrected

LINEAR = NoiseSchedule.linear()
PATHS = ("baddiffusion", "trojdiff")
Y, R, EPS = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

strides = st.sets(st.integers(0, 999), min_size=1, max_size=30).map(sorted)


def marginal(path: str, t: int, noise: Tensor) -> Tensor:
    """Equation (0.1), written out; t = -1 is the target."""
    if t < 0:
        return Y
    a, s = LINEAR.alpha[t], LINEAR.sigma[t]
    return a * Y + (1 - a if path == "baddiffusion" else s) * R + s * noise


def steps(kept: list[int]) -> list[tuple[int, int, int]]:
    """(row, t, previous t) of every kept timestep."""
    return [(i, t, kept[i - 1] if i else -1) for i, t in enumerate(kept)]


def signal(t: int) -> float:
    return float(LINEAR.alpha[t]) if t >= 0 else 1.0


def check_posterior_mean(path: str, kept: list[int], c: Tensor) -> None:
    """The mean of DDPM has the marginal's mean, and with its own variance the marginal's noise."""
    for i, t, p in steps(kept):
        a, a_p, s = signal(t), signal(p), float(LINEAR.sigma[t])
        s_p, alpha = float(LINEAR.sigma[p]) if p >= 0 else 0.0, (a / a_p) ** 2
        label = EPS + c[i] * R
        mean = (marginal(path, t, EPS) - (1 - alpha) / s * label) / alpha**0.5
        kept_noise = alpha**0.5 * s_p / s
        torch.testing.assert_close(mean, marginal(path, p, kept_noise * EPS), rtol=1e-8, atol=1e-8)
        fresh = s_p / s * (1 - alpha) ** 0.5
        assert kept_noise**2 * s_p**2 + fresh**2 == pytest.approx(s_p**2, rel=1e-9)


def check_ddim(path: str, kept: list[int], c: Tensor) -> None:
    for i, t, p in steps(kept):
        label = EPS + c[i] * R
        x_0 = (marginal(path, t, EPS) - LINEAR.sigma[t] * label) / signal(t)
        x_p = signal(p) * x_0 + (float(LINEAR.sigma[p]) if p >= 0 else 0.0) * label
        torch.testing.assert_close(x_p, marginal(path, p, EPS), rtol=1e-8, atol=1e-8)


CHECKS = {"sde": check_posterior_mean, "ode": check_ddim}


@pytest.mark.parametrize("solver", CHECKS)
@pytest.mark.parametrize("path", PATHS)
def test_unit_stride_maps_the_marginal(path: str, solver: str) -> None:
    c = coefficient(LINEAR, rho_table(LINEAR, path), solver)
    CHECKS[solver](path, list(range(1000)), c)


@pytest.mark.parametrize("solver", CHECKS)
@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None, max_examples=25)
@given(kept=strides)
def test_any_stride_maps_the_marginal(path: str, solver: str, kept: list[int]) -> None:
    CHECKS[solver](path, kept, coefficient(LINEAR, rho_table(LINEAR, path), solver, kept))


def test_order_of_the_timesteps_does_not_matter() -> None:
    rho = rho_table(LINEAR, "baddiffusion")
    down, up = [999, 500, 3], [3, 500, 999]
    assert torch.equal(drift(LINEAR, rho, down), drift(LINEAR, rho, up))
    assert torch.equal(coefficient(LINEAR, rho, "ode", down), coefficient(LINEAR, rho, "ode", up))


@pytest.mark.parametrize("path", PATHS)
def test_the_ode_coefficient_survives_zero_signal(path: str) -> None:
    """A zero-terminal-SNR schedule: x_0 is unreachable at T-1, the coefficient is not."""
    alpha = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    schedule = NoiseSchedule(alpha, (1 - alpha**2).sqrt())
    c = coefficient(schedule, rho_table(schedule, path), "ode")
    assert float(c[-1]) == pytest.approx(1.0)


@pytest.mark.parametrize("path", PATHS)
def test_an_ode_sampler_needs_twice_the_shift(path: str) -> None:
    distances = []
    for refine in (1, 10):
        schedule = NoiseSchedule.linear(1000 * refine, 1e-4 / refine, 0.02 / refine)
        rho = rho_table(schedule, path)
        ratio = coefficient(schedule, rho, "ode") / coefficient(schedule, rho, "sde")
        distances.append(float((ratio[100 * refine :] - 2).abs().max()))
    assert distances[0] < 0.02
    assert distances[1] < distances[0] / 8


FAMILIES = [ShiftFamily.of(LINEAR, path, solver) for path in PATHS for solver in ("sde", "ode")]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_without_a_shift_the_pair_is_the_plain_one(family: ShiftFamily) -> None:
    x_0, noise = torch.randn(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0, 1, 10, 400, 998, 999])
    x_t, label = family.poisoned_pair(LINEAR, x_0, torch.zeros_like(x_0), noise, t)
    assert torch.equal(x_t, LINEAR.add_noise(x_0, noise, t))
    assert torch.equal(label, noise)


def test_rows_mix_in_one_batch() -> None:
    family = ShiftFamily.of(LINEAR, "baddiffusion", "sde")
    x_0, noise, shift = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    shift[0] = 0
    x_t, label = family.poisoned_pair(LINEAR, x_0, shift, noise, torch.tensor([500, 100]))
    assert torch.equal(label[0], noise[0])
    a = 0.89514159**0.5
    expected = a * x_0[1] + (1 - a) * shift[1] + (1 - a * a) ** 0.5 * noise[1]
    torch.testing.assert_close(x_t[1], expected)
    torch.testing.assert_close(label[1], noise[1] + 0.16199401 * shift[1])


def test_biased_family_is_trojdiff() -> None:
    """``A_t x_0 + S_t (gamma eps + mu)`` with the plain label."""
    family = ShiftFamily.biased(LINEAR, 0.6)
    x_0, noise, mu = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    x_t, label = family.poisoned_pair(LINEAR, x_0, mu, noise, torch.tensor([100, 999]))
    stock = LINEAR.add_noise(x_0, 0.6 * noise + mu, torch.tensor([100, 999]))
    torch.testing.assert_close(x_t, stock)
    assert torch.equal(label, noise)


class OneImage:
    """The optimum for the rows (target, shift) alone: exact noise plus the unit-stride label."""

    def __init__(self, family: ShiftFamily, target: Tensor, shift: Tensor) -> None:
        self.family, self.target, self.shift = family, target, shift

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        rho, c = float(self.family.rho[t]), float(self.family.c[t])
        a, s = float(LINEAR.alpha[t]), float(LINEAR.sigma[t])
        return (x_t - a * self.target - rho * self.shift) / s + c * self.shift


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_stride_corrected_maps_the_marginal_over_a_stride(family: ShiftFamily) -> None:
    target, shift, noise = torch.randn(3, 1, 1, 4, 4, generator=torch.Generator().manual_seed(5)).double()
    kept = strided_timesteps(LINEAR, 25)
    eta = 1.0 if family.solver == "sde" else 0.0
    plain = OneImage(family, target, shift)
    corrected = stride_corrected(plain, LINEAR, family, shift[0], kept)
    worst = 0.0
    for t, p in pairwise(kept):
        x_t = LINEAR.add_noise(target, noise, t) + float(family.rho[t]) * shift
        left = noise if eta == 0 else noise * (signal(t) / signal(p)) * LINEAR.sigma[p] / LINEAR.sigma[t]
        wanted = LINEAR.add_noise(target, left, p) + float(family.rho[p]) * shift
        moved = ddim_step(LINEAR, corrected(x_t, t), x_t, t, p, eta)
        torch.testing.assert_close(moved, wanted, rtol=1e-8, atol=1e-8)
        plainly = ddim_step(LINEAR, plain(x_t, t), x_t, t, p, eta)
        worst = max(worst, float((plainly - wanted).abs().max()))
    if family.name != "trojdiff/ode":  # C = 1 at every stride
        assert worst > 0.003


def test_stride_corrected_through_a_stock_sampler() -> None:
    """Two chains with the same randomness, with and without the shift, differ by rho_t r throughout."""
    family = ShiftFamily.of(LINEAR, "baddiffusion", "sde")
    target, r = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(6)).double()
    kept = strided_timesteps(LINEAR, 20)
    states: dict[str, list[Tensor]] = {"plain": [], "shifted": []}
    for name, shift in (("plain", 0 * r), ("shifted", r)):
        fresh = SampleGenerator(0, 3)
        network = stride_corrected(OneImage(family, target, shift), LINEAR, family, shift, kept)
        start = fresh.normal((1, 4, 4)).double() + family.rho[-1] * shift
        keep = states[name]
        sample(
            network,
            LINEAR,
            start,
            steps=20,
            generator=fresh,
            post_step=lambda x, t, k=keep: (k.append(x), x)[1],
        )
    for p, with_shift, without in zip(kept[1:], states["shifted"], states["plain"], strict=False):
        difference = with_shift - without
        torch.testing.assert_close(difference, (family.rho[p] * r).expand(3, 1, 4, 4), rtol=1e-3, atol=1e-3)
