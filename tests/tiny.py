"""Real classes at a size that costs milliseconds: networks, models, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule

SHAPE = (1, 8, 8)
SCHEDULE = {"num_train_timesteps": 100, "beta_start": 1e-4, "beta_end": 0.005, "clip_sample": False}
"""Little noise: even an untrained network ends near where it began, so its samples pass for images."""


def tiny_unet(seed: int = 0, blocks: int = 2, **changes: Any) -> UNet2DModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16)[:blocks],
        "down_block_types": ("DownBlock2D",) * blocks,
        "up_block_types": ("UpBlock2D",) * blocks,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "add_attention": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**{**settings, **changes})


def tiny_model(seed: int = 0, timesteps: int = 100, blocks: int = 2) -> DiffusionModel:
    return DiffusionModel(tiny_unet(seed, blocks), NoiseSchedule.linear(timesteps), SHAPE)


def tiny_checkpoint(folder: Path, seed: int = 0, **schedule: Any) -> Path:
    """A folder written by stock diffusers; its network predicts next to no noise."""
    network = tiny_unet(seed, blocks=1)
    with torch.no_grad():
        network.conv_out.weight.mul_(0.1)
    DDPMPipeline(network, DDPMScheduler(**{**SCHEDULE, **schedule})).save_pretrained(folder)
    return folder


def tiny_vqvae(seed: int = 0, **changes: Any) -> VQModel:
    settings: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "latent_channels": 3,
        "sample_size": 16,
        "num_vq_embeddings": 32,
        "norm_num_groups": 4,
        "scaling_factor": 4.0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VQModel(**{**settings, **changes})
        network.quantize.embedding.weight.data.normal_(0, 0.25)
    return network


def tiny_latent_checkpoint(folder: Path, seed: int = 0, **schedule: Any) -> Path:
    """A latent pipeline of 16x16 images with latents of 3x8x8, written by stock diffusers."""
    network = tiny_unet(seed, blocks=1, in_channels=3, out_channels=3)
    with torch.no_grad():
        network.conv_out.weight.mul_(0.1)
    scheduler = DDIMScheduler(**{**SCHEDULE, **schedule})
    LDMPipeline(tiny_vqvae(seed), network, scheduler).save_pretrained(folder)
    return folder
