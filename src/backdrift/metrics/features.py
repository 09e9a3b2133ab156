"""Features of images for FD and KD: an extractor that needs no download."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdrift.core.randomness import generator


class Extractor(Protocol):
    """Images (N, C, H, W) in [-1, 1] to features (N, num_features).

    ``distance`` names the Frechet distance over them: ``FID`` for the canonical network alone.
    """

    name: str
    num_features: int

    @property
    def distance(self) -> str:
        """``FD(name)`` or ``FID``."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Features, float32."""
        ...


class RandomConv(nn.Module):
    """Three convolutions with fixed random weights: the same features on every machine.

    Untrained features rank sets of images of any domain without favouring the one that some network
    was trained on (Naeem et al., arXiv 2002.09797, use them for that reason). Distances over them
    compare models with each other; they are not comparable with FID, which takes Inception features.

    He initialisation without biases, leaky ReLU, stride 2 from the second layer on, and means over a
    2x2 grid of the last 16 channels: 64 features that keep a coarse layout.

    Args:
        channels: of the images.
    """

    name = "random-conv"
    num_features = 64

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 16)
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            drawn = torch.randn(outputs, inputs, 3, 3, generator=generator(0, self.name, channels, index))
            self.register_buffer(f"kernel_{index}", drawn * (2 / (9 * inputs)) ** 0.5)

    @property
    def distance(self) -> str:
        """``FD(random-conv)``."""
        return f"FD({self.name})"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 64) of images (N, C, H, W) in [-1, 1]; what lies outside is clamped."""
        x = images.detach().cpu().float().clamp(-1, 1)
        for index in range(3):
            kernel = self.get_buffer(f"kernel_{index}")
            x = functional.conv2d(x, kernel, padding=1, stride=1 if index == 0 else 2)
            x = functional.leaky_relu(x, 0.2)
        return functional.adaptive_avg_pool2d(x, 2).flatten(1)


class Given(nn.Module):
    """Hands on features that were extracted already; torchmetrics asks for a module."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """The features themselves, (N, num_features)."""
        return features
