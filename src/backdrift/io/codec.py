"""The VQ-VAE of a latent diffusion model: stock ``VQModel``, weights read by ourselves, float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from diffusers import VQModel
from torch import Tensor

from backdrift.core.model import out_of_memory
from backdrift.core.randomness import generator
from backdrift.core.static import StaticFinding
from backdrift.io.build import fill, first_line, planned_network
from backdrift.io.errors import CheckpointError
from backdrift.io.latents import CodecPlan, least_tensors
from backdrift.io.tensors import ContentHash

BATCH_PIXELS = 1 << 18
"""Of the images that are decoded at once."""

PROBES, PROBE_DEVIATION = 4096, 2.0
"""How many latents of one position are tried on a codebook, and their standard deviation."""

_BATCH_DISTANCES = 1 << 24


class VqCodec:
    """Encodes and decodes as ``LDMPipeline`` does; latents are those from before the codebook.

    ``decode(z) = VQModel.decode(z / scaling_factor)``, which takes the nearest entries of the codebook.

    Args:
        network: on its device, frozen.
        image_shape: (C, H, W).
        findings: what is odd about its weights.
    """

    def __init__(
        self,
        network: VQModel,
        image_shape: tuple[int, int, int],
        findings: tuple[StaticFinding, ...] = (),
    ) -> None:
        self.network, self.image_shape, self.findings = network, image_shape, findings
        self.scaling_factor = float(network.config.scaling_factor)
        self._batch = max(1, BATCH_PIXELS // (image_shape[1] * image_shape[2]))

    @cached_property
    @torch.no_grad()
    def extent(self) -> float:
        """The largest magnitude among entries of the codebook that some latent of ``PROBES`` takes, scaled.

        Latents of a trained model have about unit variance, so probes of twice its deviation reach further
        than they do. An entry far from all of them is taken by none: it costs nothing to put it there, and
        it would otherwise make saturated latents look usual. Whoever wrote the codebook can still place
        entries where probes are and the model's latents are not, which widens the range to about twice the
        reach of the probes, 16; they cannot narrow it below what such latents are decoded by. The encoder
        is not asked: nothing that is drawn depends on it, so that it may say anything.
        """
        codebook = self.network.quantize.embedding.weight.detach()
        noise = torch.randn(PROBES, codebook.shape[1], generator=generator(0, "codec extent"))
        probes = (PROBE_DEVIATION / self.scaling_factor * noise).to(codebook)
        size = max(1, _BATCH_DISTANCES // len(codebook))
        parts = (probes[start : start + size] for start in range(0, PROBES, size))
        taken = torch.cat([torch.cdist(part, codebook).argmin(dim=1) for part in parts])
        return float(codebook[taken].abs().max()) * self.scaling_factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """See :class:`backdrift.core.model.Codec`."""
        parts = [self.network.encode(part).latents.to(images.device) for part in self._parts(images)]
        return torch.cat(parts) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See :class:`backdrift.core.model.Codec`; in smaller parts when memory runs out."""
        try:
            parts = [
                self.network.decode(part / self.scaling_factor).sample.to(latents.device)
                for part in self._parts(latents)
            ]
            return torch.cat(parts)
        except RuntimeError as error:
            if not out_of_memory(error) or self._batch == 1:
                raise
        self._batch = max(1, min(self._batch, len(latents)) // 2)
        return self.decode(latents)

    def _parts(self, rows: Tensor) -> Iterator[Tensor]:
        for start in range(0, len(rows), self._batch):
            yield rows[start : start + self._batch].to(self.network.device)


def load_codec(plan: CodecPlan, digest: ContentHash, device: str) -> VqCodec:
    """Builds the VQ-VAE, frozen and in evaluation mode, and adds its weights to a hash.

    Raises:
        CheckpointError: weights that do not fit the config, are not finite, or changed meanwhile; a
            config that gives no working network.
    """
    network = planned_network(
        lambda: VQModel(**plan.config), "VQ-VAE", plan.weights, least_tensors(plan.config)
    )
    try:
        with torch.no_grad():
            images = torch.empty(1, *plan.image_shape, device="meta")
            latents = network.encode(images).latents
            decoded = network.decode(torch.empty(1, *plan.latent_shape, device="meta")).sample
    except Exception as error:
        raise CheckpointError(f"the VQ-VAE does not run: {first_line(error)}", "BD404") from None
    if latents.shape[1:] != plan.latent_shape or decoded.shape != images.shape:
        raise CheckpointError(
            f"the VQ-VAE turns images of {tuple(images.shape)} into {tuple(latents.shape)} and latents of "
            f"{plan.latent_shape} into {tuple(decoded.shape)}",
            "BD404",
        )
    findings = fill(network, plan.weights, digest)
    network.to(device)
    network.eval().requires_grad_(False)
    return VqCodec(network, plan.image_shape, findings)
