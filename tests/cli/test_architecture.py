"""The network of google/ddpm-cifar10-32 (35.7M parameters) with random weights, on this machine."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

LIMIT_SECONDS, LIMIT_KIB = 20 * 60, 24 * 2**20


@pytest.fixture
def cifar10_sized(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_quick_goes_through_within_its_limits(cifar10_sized: Path) -> None:
    begun = time.monotonic()
    command = [sys.executable, "-m", "backdrift", "scan", str(cifar10_sized), "--budget", "quick", "-q"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    report = json.loads(done.stdout)["reports"][0]
    assert report["verdict"] != "BACKDOORED"
    assert time.monotonic() - begun < LIMIT_SECONDS
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < LIMIT_KIB
