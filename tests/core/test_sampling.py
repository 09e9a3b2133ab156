"""The sampling loop and its steps against stock diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.sampling import (
    ODE_SAMPLERS,
    SAMPLERS,
    ddim_step,
    differentiable_sample,
    make_scheduler,
    sample,
    strided_timesteps,
)
from backdrift.core.schedule import NoiseSchedule
from tiny import SHAPE, tiny_model, tiny_unet

pytestmark = pytest.mark.filterwarnings("ignore:.*algorithm_types dpmsolver:FutureWarning")

STOCK = {
    "ddpm": (DDPMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "dpm-solver": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "heun": (HeunDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "pndm": (PNDMScheduler, {"timestep_spacing": "trailing", "set_alpha_to_one": True}),
    "deis": (DEISMultistepScheduler, {}),
}


def stock_scheduler(name: str, **changes: Any) -> Any:
    kind, options = STOCK[name]
    return kind(num_train_timesteps=100, beta_start=1e-4, beta_end=0.02, **{**options, **changes})


def start(count: int = 3) -> Tensor:
    return SampleGenerator(7, count).normal(SHAPE)


def pair() -> tuple[Tensor, Tensor, Tensor]:
    x, noise, fresh = torch.randn(3, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    return x, noise, fresh


@pytest.mark.parametrize("steps", [100, 20, 4])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_equals_stock(eta: float, steps: int) -> None:
    x, noise, fresh = pair()
    scheduler = stock_scheduler("ddim")
    scheduler.set_timesteps(steps)
    kept = scheduler.timesteps.tolist()
    for t, p in zip(kept, [*kept[1:], -1], strict=True):
        extra = {"eta": eta, "variance_noise": fresh} if eta else {}
        stock = scheduler.step(noise, t, x, return_dict=False, **extra)[0]
        ours = ddim_step(NoiseSchedule.linear(100), noise, x, t, p, eta, fresh if eta else None)
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [100, 20])
def test_eta_one_equals_a_stock_ddpm_step(steps: int) -> None:
    x, noise, fresh = pair()
    scheduler = stock_scheduler("ddpm")
    scheduler.set_timesteps(steps)
    kept = scheduler.timesteps.tolist()
    for t, p in zip(kept, [*kept[1:], -1], strict=True):
        same = torch.Generator().manual_seed(3)
        stock = scheduler.step(noise, t, x, generator=same, return_dict=False)[0]
        fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        ours = ddim_step(NoiseSchedule.linear(100), noise, x, t, p, eta=1.0, fresh=fresh)
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STOCK)
@torch.no_grad()
def test_sample_equals_a_plain_loop(name: str) -> None:
    """The network itself in a loop of stock diffusers, the same list of generators."""
    model, network = tiny_model(blocks=1), tiny_unet(blocks=1)
    ours = sample(model, model.schedule, start(), sampler=name, steps=10, generator=SampleGenerator(1, 3))
    scheduler, x = stock_scheduler(name), start()
    scheduler.set_timesteps(10)
    if name == "heun":  # its state is x_t / A_t
        x = x * (1 + scheduler.sigmas[0] ** 2) ** 0.5
    extra = {"generator": SampleGenerator(1, 3).generators} if name == "ddpm" else {}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(seen, t).sample, t, x, **extra).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-4)
    assert float((ours - start()).abs().max()) > 0.1


def test_every_sampler_is_tested_here() -> None:
    assert set(STOCK) == set(SAMPLERS)
    assert set(ODE_SAMPLERS) == set(SAMPLERS) - {"ddpm"}


@pytest.mark.parametrize("name", STOCK)
def test_the_first_input_of_the_network_is_the_start(name: str) -> None:
    seen: list[tuple[int, Tensor]] = []

    def denoise(x: Tensor, t: Tensor | int, /) -> Tensor:
        seen.append((int(t), x))
        return torch.zeros_like(x)

    sample(
        denoise, NoiseSchedule.linear(100), start(), sampler=name, steps=10, generator=SampleGenerator(1, 3)
    )
    assert seen[0][0] == 99
    torch.testing.assert_close(seen[0][1], start(), rtol=1e-6, atol=1e-6)
    assert len(seen) == {"heun": 19, "pndm": 19}.get(name, 10)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@torch.no_grad()
def test_clipping_is_that_of_diffusers(name: str) -> None:
    model, network = tiny_model(blocks=1), tiny_unet(blocks=1)
    options = {"sampler": name, "steps": 10}
    ours, free = (
        sample(model, model.schedule, 3 * start(), clip_x0=c, generator=SampleGenerator(1, 3), **options)
        for c in (True, False)
    )
    scheduler, x = stock_scheduler(name, clip_sample=True), 3 * start()
    scheduler.set_timesteps(10)
    extra = {"generator": SampleGenerator(1, 3).generators} if name == "ddpm" else {}
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x, **extra).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-4)
    assert float(ours.abs().max()) <= 1.0
    assert float(free.abs().max()) > 1.0


def test_post_step_sees_every_step_and_its_result_goes_on() -> None:
    model = tiny_model(blocks=1)
    seen: list[int] = []

    def clamp(x: Tensor, t: int) -> Tensor:
        seen.append(t)
        return x.clamp(-1, 1)

    out = sample(model, model.schedule, 3 * start(), sampler="ddim", steps=4, post_step=clamp)
    assert seen == strided_timesteps(model.schedule, 4) == [99, 74, 49, 24]
    assert float(out.abs().max()) <= 1.0
    x = 3 * start()
    with torch.no_grad():
        for t, p in ((99, 74), (74, 49), (49, 24), (24, -1)):
            x = ddim_step(model.schedule, model(x, t), x, t, p).clamp(-1, 1)
    torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-4)


def test_no_gradient_is_recorded() -> None:
    model = tiny_model(blocks=1)
    x_T = start().requires_grad_()
    assert not sample(model, model.schedule, x_T, sampler="ddim", steps=2).requires_grad


def test_the_start_is_left_alone() -> None:
    model, x_T = tiny_model(blocks=1), start()
    sample(model, model.schedule, x_T, steps=3, generator=SampleGenerator(0, 3))
    assert torch.equal(x_T, start())


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_steps_out_of_range(steps: int) -> None:
    model = tiny_model(blocks=1)
    with pytest.raises(ValueError, match=r"1\.\.100"):
        sample(model, model.schedule, start(), sampler="ddim", steps=steps)


def test_ddpm_without_a_generator() -> None:
    model = tiny_model(blocks=1)
    with pytest.raises(ValueError, match="SampleGenerator"):
        sample(model, model.schedule, start(), sampler="ddpm")


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ddpm", "ddim"}))
def test_clipping_where_there_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="no x_0 clipping"):
        make_scheduler(name, NoiseSchedule.linear(100), clip_x0=True)


def test_unknown_sampler_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'euler'.*ddpm, ddim"):
        make_scheduler("euler", NoiseSchedule.linear(100))


@pytest.mark.parametrize("steps", [1, 5, 50, 100])
def test_strided_timesteps_start_at_the_end(steps: int) -> None:
    kept = strided_timesteps(NoiseSchedule.linear(100), steps)
    assert kept == list(range(99, -1, -100 // steps))


def chain(eta: float, x_T: Tensor) -> tuple[DiffusionModel, list[Tensor]]:
    model = tiny_model(blocks=1)
    kept = strided_timesteps(model.schedule, 5)
    fresh = SampleGenerator(1, 3) if eta else None
    return model, differentiable_sample(model, model.schedule, x_T, kept, eta=eta, generator=fresh)


@pytest.mark.parametrize(("eta", "name"), [(0.0, "ddim"), (1.0, "ddpm")])
def test_differentiable_sample_equals_sample(eta: float, name: str) -> None:
    model, states = chain(eta, start())
    assert len(states) == 6
    assert torch.equal(states[0], start())
    stock = sample(model, model.schedule, start(), sampler=name, steps=5, generator=SampleGenerator(1, 3))
    torch.testing.assert_close(states[-1].detach(), stock, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_start() -> None:
    """Against central differences along one direction."""
    model = tiny_model(blocks=1)
    model.network.double()
    kept = strided_timesteps(model.schedule, 5)
    x_T = start(1).double().requires_grad_()
    direction = SampleGenerator(8, 1).normal(SHAPE).double()

    def energy(x: Tensor) -> Tensor:
        return (differentiable_sample(model, model.schedule, x, kept)[-1] ** 2).sum()

    (gradient,) = torch.autograd.grad(energy(x_T), x_T)
    with torch.no_grad():
        step = 1e-5 * direction
        slope = (energy(x_T + step) - energy(x_T - step)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_eta_without_a_generator() -> None:
    model = tiny_model(blocks=1)
    with pytest.raises(ValueError, match="SampleGenerator"):
        differentiable_sample(model, model.schedule, start(), [99, 49], eta=1.0)


@pytest.mark.parametrize("name", ["heun", "pndm"])
def test_no_hook_between_two_calls_of_one_step(name: str) -> None:
    model = tiny_model(blocks=1)
    with pytest.raises(ValueError, match="no post-step hook"):
        sample(model, model.schedule, start(), sampler=name, steps=4, post_step=lambda x, t: x)
