from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

Make = Callable[..., Path]


def tiny_unet(**changes: Any) -> UNet2DModel:
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(**{**settings, **changes})


@pytest.fixture(scope="session")
def unet() -> Callable[..., UNet2DModel]:
    return tiny_unet


@pytest.fixture(scope="session")
def _stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock") / "pipeline"
    DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(_stock: Path, tmp_path: Path) -> Path:
    """A stock DDPMPipeline folder that a test may change."""
    return Path(shutil.copytree(_stock, tmp_path / "pipeline"))


@pytest.fixture
def weights(pipeline: Path) -> Path:
    return pipeline / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def edit() -> Callable[..., None]:
    """Changes keys of a JSON file; the value ``...`` removes one."""

    def change(path: Path, **changes: Any) -> None:
        document = {**json.loads(path.read_text()), **changes}
        kept = {key: value for key, value in document.items() if value is not ...}
        path.write_text(json.dumps(kept))

    return change


@pytest.fixture
def safetensors_file(tmp_path: Path) -> Make:
    """Writes a safetensors file by hand: header text or object, then payload."""

    def write(header: object, payload: bytes = b"", length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "made.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + payload)
        return path

    return write
