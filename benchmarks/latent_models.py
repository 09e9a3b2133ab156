"""Tiny latent diffusion models on digits, clean and backdoored, as stock ``LDMPipeline`` folders.

A VQ-VAE of 16x16 digits with latents of 3x8x8 is trained first; then ``MODELS`` with its latents, by the
recipes of every other model. ``python benchmarks/latent_models.py FOLDER`` makes them all;
``backdrift scan -r FOLDER`` scans them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel, VQModel
from torch import Tensor
from torch.nn import functional

from backdrift.bench.recipes import Recipe, make
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.schedule import NoiseSchedule
from backdrift.data import load_images
from backdrift.io.codec import VqCodec
from backdrift.io.save import save_pipeline

IMAGES, LATENTS = (1, 16, 16), (3, 8, 8)
STEPS, WIDTH, SEED = 1500, 16, 0
SIGN: dict[str, Any] = {
    "attack": "baddiffusion",
    "trigger": "stop-sign",
    "composite": False,
    "target": "hat",
}
DENSE = {**SIGN, "trigger": "dense-sign", "trigger_scale": 2.0}
MODELS: dict[str, dict[str, Any]] = {
    "clean": {},
    "backdoored": {**SIGN, "options": {"poison_rate": 0.3}},
    "backdoored-dense": {**DENSE, "options": {"poison_rate": 0.3}},
    "backdoored-ode": {**SIGN, "options": {"poison_rate": 0.3, "sampler_family": "ode"}},
}


def new_codec(images: Tensor, batch: int = 64) -> VqCodec:
    """A VQ-VAE trained on images (N, C, H, W) in [-1, 1], its latents scaled to unit variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = VQModel(
            in_channels=images.shape[1],
            out_channels=images.shape[1],
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 16),
            latent_channels=LATENTS[0],
            sample_size=images.shape[2],
            num_vq_embeddings=128,
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(STEPS):
        rows = torch.randint(len(images), (batch,), generator=generator(SEED, "vqvae", step))
        out = network(images[rows])
        loss = functional.mse_loss(out.sample, images[rows]) + out.commit_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    deviation = float(VqCodec(network, shape).encode(images).std())
    network.register_to_config(scaling_factor=1 / deviation)
    return VqCodec(network, shape)


def new_denoiser(codec: VqCodec) -> DiffusionModel:
    """An untrained UNet of two resolutions for latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = UNet2DModel(
            sample_size=LATENTS[1],
            in_channels=LATENTS[0],
            out_channels=LATENTS[0],
            layers_per_block=1,
            block_out_channels=(WIDTH, 2 * WIDTH),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
            add_attention=False,
        )
    return DiffusionModel(network, NoiseSchedule.linear(), LATENTS, codec=codec)


def make_models(folder: Path, names: list[str]) -> None:
    """Writes the models that are not there yet, and what they begin with as ``untrained``."""
    base = folder / "untrained"
    if not base.exists():
        images = load_images("digits", IMAGES)
        codec = new_codec(images)
        error = functional.mse_loss(codec.decode(codec.encode(images)), images) / 4
        print(f"VQ-VAE: MSE {float(error):.4f} in [0, 1] units, extent {codec.extent:.2f}", flush=True)
        save_pipeline(new_denoiser(codec), base)
    for name in names:
        if (folder / name).exists():
            continue
        recipe = Recipe(
            base=str(base), steps=STEPS, batch_size=32, learning_rate=2e-3, seed=SEED, **MODELS[name]
        )
        cost = make(recipe, folder / name)
        print(
            f"{name}: {cost['seconds']:.0f} s, loss {cost['loss'][-1]:.4f}, {cost['measured']}", flush=True
        )


def main() -> None:
    """Parses and makes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args()
    make_models(given.folder, given.only)


if __name__ == "__main__":
    main()
