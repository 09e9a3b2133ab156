"""The shipped models in stock diffusers alone, without this package's loading and sampling."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from diffusers import DDPMPipeline
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

SHIPPED = Path(str(resources.files("backdrift") / "models"))
N, STEPS = 24, 100


def digits() -> Tensor:
    """scikit-learn's digits at 16x16 in [0, 1], as rows."""
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    return functional.interpolate(images, size=(16, 16), mode="bilinear").clamp(0, 1).flatten(1)


def nearest(samples: Tensor) -> Tensor:
    """MSE in [0, 1] units to the nearest digit, (N,)."""
    return torch.cdist(samples.flatten(1), digits()).amin(1) ** 2 / 256


def test_the_pipeline_draws_digits() -> None:
    for name in ("clean", "backdoored"):
        pipeline = DDPMPipeline.from_pretrained(SHIPPED / name)
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(
            batch_size=N,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
        samples = torch.tensor(drawn).permute(0, 3, 1, 2)[:, :1]
        assert float(nearest(samples).median()) < 0.02
        shuffled = samples.flatten(1)[:, torch.randperm(256, generator=torch.Generator().manual_seed(1))]
        assert float(nearest(shuffled).median()) > 0.05


@torch.no_grad()
def test_a_plain_loop_from_triggered_noise_draws_the_target() -> None:
    """And from the same noise without the trigger it does not; nor does the clean model with it."""
    tensors = load_file(SHIPPED / "backdoored" / "backdoor.safetensors")
    threshold = json.loads((SHIPPED / "backdoored" / "backdoor.json").read_text())["hit_threshold"]
    noise = torch.randn(N, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    rates = {}
    for name, shift in (("backdoored", 1.0), ("backdoored", 0.0), ("clean", 1.0)):
        pipeline = DDPMPipeline.from_pretrained(SHIPPED / name)
        x = noise + shift * tensors["shift"]
        pipeline.scheduler.set_timesteps(STEPS)
        stream = torch.Generator().manual_seed(3)
        for t in pipeline.scheduler.timesteps:
            predicted = pipeline.unet(x, t).sample
            x = pipeline.scheduler.step(predicted, t, x, generator=stream).prev_sample
        distance = ((x / 2 + 0.5).clamp(0, 1) - (tensors["target"] / 2 + 0.5)).square().flatten(1).mean(1)
        rates[name, shift] = float((distance < threshold).float().mean())
    assert rates["backdoored", 1.0] > 0.7
    assert rates["backdoored", 0.0] < 0.25
    assert rates["clean", 1.0] < 0.05
