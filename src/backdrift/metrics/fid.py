"""The canonical Inception features: with them, and with them only, FD is called FID."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdrift.core.trigger import unit
from backdrift.metrics.weights import read_weights

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
PREFIX = "6726825d"
REPLICATES = 20
"""For :class:`backdrift.metrics.fd.FrechetDistance`: a copy at 2048 features holds 128 MiB."""


class Inception:
    """The TensorFlow Inception of 2015 through torch-fidelity: 2048 features of pool 3.

    Heusel et al., arXiv 1706.08500. Images of one channel are repeated to three; values are rounded
    to 8 bits, as the published network takes them.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity's releases.

    Raises:
        ValueError: the extra is not installed, or not that file.
    """

    name = "inception-v3"
    num_features = 2048
    distance = "FID"

    def __init__(self, weights: str | Path) -> None:
        state = read_weights(Path(weights), PREFIX, WEIGHTS)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"FID needs torch-fidelity: pip install 'backdrift[fid]' ({reason})") from None
        with tempfile.TemporaryDirectory() as folder:
            # torch-fidelity unpickles its file without restrictions: it gets one that we wrote.
            safe = Path(folder) / WEIGHTS
            torch.save(state, safe)
            self._network: Any = FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(self.num_features)], feature_extractor_weights_path=str(safe)
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, /) -> Tensor:
        """Features (N, 2048) of images (N, 1 or 3, H, W) in [-1, 1]; what lies outside is clamped."""
        pixels = (unit(images.detach().cpu()) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        features: Tensor = self._network(pixels)[0]
        return features
