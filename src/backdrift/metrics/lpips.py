"""LPIPS: distance of deep features that people find alike or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdrift.metrics.mse import matched
from backdrift.metrics.weights import read_weights

higher_is_better = False

WEIGHTS = "alexnet-owt-7be5be79.pth"
PREFIX = "7be5be79"


class Lpips:
    """LPIPS v0.1 with AlexNet (Zhang et al., arXiv 1801.03924), through the package ``lpips``.

    The metric of BadDiffusion's appendix C. The package brings the linear heads; the AlexNet below
    them is torchvision's and comes from the user.

    Args:
        weights: the file ``alexnet-owt-7be5be79.pth`` of torchvision.

    Raises:
        ValueError: the extra is not installed, or not that file.
    """

    name = "LPIPS(alex)"

    def __init__(self, weights: str | Path) -> None:
        state = read_weights(Path(weights), PREFIX, WEIGHTS)
        try:
            from lpips import LPIPS
        except (ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"LPIPS needs lpips: pip install 'backdrift[lpips]' ({reason})") from None
        self._network: Any = LPIPS(net="alex", pnet_rand=True, verbose=False)
        for name, parameter in self._network.net.named_parameters():  # slice2.3.weight
            parameter.data.copy_(state["features." + name.split(".", 1)[1]])

    @torch.no_grad()
    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        """LPIPS of every image to its reference: shape (N,), from 0, float64.

        Args:
            images: (N, C, H, W) in [-1, 1], the range that the network takes; clamped. One channel is
                repeated to three; at least 32x32 pixels.
            reference: (C, H, W), or one for every image (N, C, H, W); in [-1, 1] too.

        Raises:
            ValueError: shapes that do not match, or images that are too small.
        """
        if min(images.shape[2:]) < 32:
            raise ValueError(f"LPIPS needs images of at least 32x32 pixels, not {tuple(images.shape[2:])}")
        pair = [images, matched(images, reference)]
        first, second = (x.detach().cpu().float().clamp(-1, 1).expand(-1, 3, -1, -1) for x in pair)
        found: Tensor = self._network(first, second)
        return found.double().reshape(len(images))
