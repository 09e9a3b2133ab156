"""Numbers worked out independently of this package: (0.1)-(0.4) in float64 numpy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, coefficient, drift, rho_table

LINEAR = NoiseSchedule.linear()
TINY = NoiseSchedule.from_betas(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
AT = [0, 1, 10, 100, 500, 900, 999]


def table(schedule: NoiseSchedule, path: str, solver: str) -> Tensor:
    return coefficient(schedule, rho_table(schedule, path), solver)


def coef_miu(schedule: NoiseSchedule) -> Tensor:
    """Constant of the published DDPM attack sampler of TrojDiff, from its k_t = h_t at rho = S."""
    k = drift(schedule, rho_table(schedule, "trojdiff"))
    before = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.sigma[:-1]])
    return before * schedule.betas - before**2 * (1 - schedule.betas).sqrt() * k


TABLES = {
    "abar": lambda s: s.alphas_cumprod,
    "1-A": lambda s: rho_table(s, "baddiffusion"),
    "C sde BD": lambda s: table(s, "baddiffusion", "sde"),
    "C ode BD": lambda s: table(s, "baddiffusion", "ode"),
    "S": lambda s: rho_table(s, "trojdiff"),
    "k": lambda s: drift(s, rho_table(s, "trojdiff")),
    "coef_miu": coef_miu,
    "C sde TD": lambda s: table(s, "trojdiff", "sde"),
    "C ode TD": lambda s: table(s, "trojdiff", "ode"),
}

VECTORS = {
    "abar": [0.9999, 0.99978009, 0.99780657, 0.89514159, 0.077796658, 0.00027024452, 4.0358298e-05],
    "1-A": [5.000125e-05, 0.00010996001, 0.0010973158, 0.053880773, 0.72107948, 0.98356088, 0.99364718],
    "C sde BD": [0.005000125, 0.0074148688, 0.023418773, 0.16199401, 0.4813708, 0.50220616, 0.50251518],
    "C ode BD": [0.005000125, 0.012414719, 0.045181767, 0.32236393, 0.96010885, 0.99986363, 0.99997962],
    "S": [0.01, 0.014829293, 0.046834042, 0.32381848, 0.96031419, 0.99986487, 0.99997982],
    "k": [0.01, 0.0048298925, 0.003311309, 0.0032464662, 0.0052522111, 0.0090561951, 0.010050711],
    "coef_miu": [0, 7.1623891e-07, 6.7506017e-06, 3.3735945e-04, 0.00484153, 0.0090537252, 0.010050301],
    "C sde TD": [1, 0.59726433, 0.51832352, 0.50251902, 0.50137107, 0.50227466, 0.50252542],
    "C ode TD": [1, 1, 1, 1, 1, 1, 1],
}

TINY_VECTORS = {
    "abar": [0.9, 0.72, 0.504, 0.3024],
    "C sde BD": [0.16227766, 0.2793194, 0.38345293, 0.47065597],
    "C ode BD": [0.16227766, 0.4286219, 0.62449856, 0.77806513],
    "k": [0.31622777, 0.24630755, 0.2615538, 0.28969725],
    "C sde TD": [1, 0.65166852, 0.61401732, 0.60490562],
    "C ode TD": [1, 1, 1, 1],
    "coef_miu": [0, 0.04121514, 0.09747223, 0.1704074],
}


@pytest.mark.parametrize("name", VECTORS)
def test_linear_schedule(name: str) -> None:
    assert TABLES[name](LINEAR)[AT].tolist() == pytest.approx(VECTORS[name], rel=1e-7, abs=1e-15)


@pytest.mark.parametrize("name", TINY_VECTORS)
def test_tiny_schedule(name: str) -> None:
    assert TABLES[name](TINY).tolist() == pytest.approx(TINY_VECTORS[name], rel=1e-7, abs=1e-15)


def test_published_baddiffusion_coefficient() -> None:
    """``S_t / (1 + sqrt(alpha_t))``, an identity with h_t S_t / beta_t."""
    published = LINEAR.sigma / (1 + (1 - LINEAR.betas).sqrt())
    torch.testing.assert_close(table(LINEAR, "baddiffusion", "sde"), published, rtol=0, atol=1e-13)


def test_published_k_is_a_sum() -> None:
    """k_t as TrojDiff defines it: ``sum_j k_{t-j} sqrt(alpha_t ... alpha_{t-j+1}) = S_t``."""
    k = drift(TINY, rho_table(TINY, "trojdiff"))
    for t in range(4):
        steps = [k[t - j] * (1 - TINY.betas[t - j + 1 : t + 1]).prod().sqrt() for j in range(t + 1)]
        assert float(sum(steps)) == pytest.approx(float(TINY.sigma[t]), rel=1e-12)


@pytest.mark.parametrize(
    ("solver", "eta", "expected"),
    [
        ("sde", 1, [0, 0, 0]),
        ("sde", 0, [1.90, 2.71, 2.85]),
        ("ode", 1, [-0.97, -0.61, -0.17]),
        ("ode", 0, [0, 0, 0]),
    ],
)
def test_price_of_the_wrong_sampler(solver: str, eta: int, expected: list[float]) -> None:
    """Error of x_t per unit of r in units of S_t, at t = 500, 100, 10: an oracle for one row.

    The oracle answers ``(x_t - A_t y - rho_t r) / S_t + C_t r``: it takes the error for noise.
    """
    family = ShiftFamily.of(LINEAR, "baddiffusion", solver)
    a, s, beta = LINEAR.alpha.tolist(), LINEAR.sigma.tolist(), LINEAR.betas.tolist()
    x, found = float(family.rho[-1]), {}
    for t in range(999, 0, -1):
        p, label = t - 1, (x - float(family.rho[t])) / s[t] + float(family.c[t])
        if eta:
            x = (x - beta[t] / s[t] * label) / (1 - beta[t]) ** 0.5
        else:
            x = a[p] / a[t] * (x - s[t] * label) + s[p] * label
        found[p] = (x - float(family.rho[p])) / s[p]
    assert [found[t] for t in (500, 100, 10)] == pytest.approx(expected, abs=0.006)
