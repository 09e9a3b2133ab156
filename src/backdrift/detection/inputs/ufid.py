"""UFID: a start that keeps drawing the same image when it is perturbed."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator, derive_seed
from backdrift.core.sampling import SAMPLERS, SamplerName, sample
from backdrift.detection.inputs._base import check_starts
from backdrift.io.errors import CheckpointError
from backdrift.metrics.features import Extractor, RandomConv
from backdrift.metrics.fid import Inception
from backdrift.metrics.pairwise import mean_cosine

Perturbation = Literal["variance-preserving", "additive"]
PERTURBATIONS: tuple[str, ...] = get_args(Perturbation)


@dataclass(frozen=True)
class Ufid:
    """Mean pairwise similarity of what a start and its perturbed copies draw; high is suspicious.

    Guan et al.: UFID: A Unified Framework for Input-level Backdoor Detection on Diffusion Models, AAAI
    2025, arXiv 2404.01101. Black-box: it queries the sampler and needs neither weights nor gradients.
    A trigger outlasts noise that is added to it, so its copies all end in the target; copies of a
    clean start drift apart. The similarity is the mean cosine over all pairs of embeddings, the density
    of the paper's weighted complete graph.

    Deviations. The published code is for prompts; for starting noise the paper's abstract says that
    Gaussian noise is added, and the rest is ours. ``additive`` is that: ``x + s z`` with s = 1. It has
    variance 2, which no start has; the default ``variance-preserving`` is ``sqrt(1 - s^2) x + s z``,
    whose trigger is weaker by that factor. The embedding is not CLIP: it is ``random-conv``, or
    Inception where its weights are given. A threshold comes from
    :func:`backdrift.detection.inputs._base.clean_threshold`.

    What it costs: ``(perturbations + 1) * steps`` network evaluations for a start with the default
    sampler. What it cannot see: a backdoor of the other family than the sampler, which does not fire
    there, or a trigger in a model that draws few images anyway. An ODE sampler draws nothing fresh, so
    copies of a clean start stay more alike than under DDPM and the gap is smaller.

    Args:
        perturbations: K copies beside the start itself, at least 1.
        strength: s, the standard deviation of z; in (0, 1), or above 0 for ``additive``.
        perturbation: how z enters.
        sampler: the one in use, of ``core.sampling.SAMPLERS``.
        steps: of the sampler.
        inception_weights: see :class:`backdrift.metrics.fid.Inception`; random features without.
    """

    perturbations: int = 4
    strength: float = 0.5
    perturbation: Perturbation = "variance-preserving"
    sampler: SamplerName = "ddpm"
    steps: int = 50
    inception_weights: str = ""

    def __post_init__(self) -> None:
        if self.perturbation not in PERTURBATIONS:
            raise ValueError(
                f"unknown perturbation {self.perturbation!r}; known: {', '.join(PERTURBATIONS)}"
            )
        preserving = self.perturbation == "variance-preserving"
        if self.perturbations < 1 or self.steps < 1:
            raise ValueError("ufid needs at least one perturbation and one step")
        if self.strength <= 0 or (preserving and self.strength >= 1):
            raise ValueError(f"a perturbation of strength {self.strength} leaves nothing to compare")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {', '.join(SAMPLERS)}")

    def settings(self) -> dict[str, Any]:
        """See :class:`backdrift.detection.inputs._base.InputDetector`; no path of a file is in it."""
        kept = {k: v for k, v in asdict(self).items() if k != "inception_weights"}
        embedding = Inception.name if self.inception_weights else RandomConv.name
        return {"version": 1, **kept, "embedding": embedding}

    def cost(self, n: int) -> int:
        """See :class:`backdrift.detection.inputs._base.InputDetector`."""
        calls = {"heun": 2 * self.steps - 1, "pndm": self.steps + 9}.get(self.sampler, self.steps)
        return n * (self.perturbations + 1) * calls

    def scores(self, model: DiffusionModel, starts: Tensor, *, seed: int) -> Tensor:
        """Mean cosine similarity in [-1, 1]; see :class:`backdrift.detection.inputs._base.InputDetector`.

        What is random for a start depends on the seed and on its own values.
        """
        check_starts(model, starts)
        embed = self._extractor(model.image_shape[0])
        group = max(1, model.batch_size // (self.perturbations + 1))
        with model.frozen():
            parts = [
                self._of_group(model, embed, starts[begin : begin + group], seed)
                for begin in range(0, len(starts), group)
            ]
        return torch.cat(parts)

    def _extractor(self, channels: int) -> Extractor:
        return Inception(self.inception_weights) if self.inception_weights else RandomConv(channels)

    def _of_group(self, model: DiffusionModel, embed: Extractor, starts: Tensor, seed: int) -> Tensor:
        copies = self.perturbations + 1
        streams = [derive_seed(seed, digest(start), copy) for start in starts for copy in range(copies)]
        fresh = SampleGenerator(seed, streams, "ufid")
        noise = fresh.normal(model.sample_shape, model.device)
        noise = noise.reshape(len(starts), copies, *model.sample_shape)
        x_T = self.perturbed(starts.to(noise), noise[:, 1:])
        images = sample(
            model,
            model.schedule,
            x_T.flatten(0, 1),
            sampler=self.sampler,
            steps=self.steps,
            generator=fresh,
        )
        if not bool(images.isfinite().all()):
            raise CheckpointError("the model draws no finite numbers; no start was scored", "BD404")
        return mean_cosine(embed(model.decode(images)).reshape(len(starts), copies, -1)).cpu()

    def perturbed(self, starts: Tensor, noise: Tensor) -> Tensor:
        """The starts and, behind each, its perturbed copies: (N, K + 1, C, H, W).

        Args:
            starts: x, (N, C, H, W).
            noise: z, standard normal, (N, K, C, H, W).
        """
        kept = math.sqrt(1 - self.strength**2) if self.perturbation == "variance-preserving" else 1.0
        copies = kept * starts[:, None] + self.strength * noise
        return torch.cat([starts[:, None], copies], dim=1)


def digest(start: Tensor) -> str:
    """sha256 of the float32 values of one start."""
    values = np.ascontiguousarray(start.detach().cpu().float().numpy())
    return hashlib.sha256(values.tobytes()).hexdigest()
