"""What numbers were computed with."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from backdrift.core.results import Environment


def environment(device: str) -> Environment:
    """What the numbers of a report were computed with."""
    names = ("torch", "diffusers", "safetensors", "numpy")
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        device=device if device == "cpu" else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        versions={name: metadata.version(name) for name in names},
    )
