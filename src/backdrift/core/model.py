"""The model under test: a denoiser that always predicts noise, whatever its network predicts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from backdrift.core.schedule import NoiseSchedule
from backdrift.core.static import StaticFinding

PredictionType = Literal["epsilon", "v_prediction", "sample", "score"]


class Denoiser(Protocol):
    """``(x_t of shape (B, C, H, W), t of shape (B,) or int) -> predicted noise (B, C, H, W)``."""

    def __call__(self, x_t: Tensor, t: Tensor | int, /) -> Tensor:
        """Predicted noise, shape of ``x_t``."""
        ...


@dataclass(frozen=True)
class Origin:
    """Where a model came from. Torch-free facts that a report may print.

    Args:
        path: the folder or file as the user named it.
        weights: file name of the weights inside it.
        sha256: of the bytes that were loaded.
        config: the parsed network configuration.
        dtype: dtype of the stored weights, for example ``float16``.
        findings: what is odd about the weights.
    """

    path: str = ""
    weights: str = ""
    sha256: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = ""
    findings: tuple[StaticFinding, ...] = ()


class Codec(Protocol):
    """Between images and the latents that a latent diffusion model draws."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        ...

    @property
    def extent(self) -> float:
        """The largest magnitude of a value that usual latents are decoded by, > 0."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to latents, of about unit variance."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images, not clamped."""
        ...


@dataclass
class DiffusionModel:
    """A denoiser, its noise schedule and the shape of a sample.

    Calling it predicts noise. It counts what it costs: ``evaluations`` grows by one per sample and
    forward pass, and by two more when the pass is recorded for a backward pass. Decoding latents is not
    among them.

    Args:
        network: called as ``network(x_t, t).sample``, or any module that returns a tensor.
        schedule: the forward process.
        sample_shape: (C, H, W).
        prediction_type: what the network returns; the call converts it to noise. ``score`` is that of
            variance exploding models, whose network is given ``z_t`` and its noise level in place of x_t
            and t, see :meth:`backdrift.core.schedule.NoiseSchedule.variance_exploding`.
        batch_size: the most samples per forward pass without gradients. Halves by itself when
            memory runs out.
        origin: where the weights came from.
        codec: of a model that draws latents; None for one that draws pixels in [-1, 1].
    """

    network: nn.Module
    schedule: NoiseSchedule
    sample_shape: tuple[int, int, int]
    prediction_type: PredictionType = "epsilon"
    batch_size: int = 256
    origin: Origin = field(default_factory=Origin)
    codec: Codec | None = None
    evaluations: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what a user sees; ``sample_shape`` for a model of pixels."""
        return self.sample_shape if self.codec is None else self.codec.image_shape

    @property
    def extent(self) -> float:
        """The largest magnitude of a value of a sample: 1 for pixels, that of the codec for latents."""
        return 1.0 if self.codec is None else self.codec.extent

    def decode(self, samples: Tensor) -> Tensor:
        """What a user sees, in [-1, 1] but not clamped; samples of pixels as they are."""
        return samples if self.codec is None else self.codec.decode(samples)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to what the denoiser is trained on; pixels as they are."""
        return images if self.codec is None else self.codec.encode(images)

    @property
    def device(self) -> torch.device:
        """Device of the network's parameters (CPU for a network without any)."""
        parameter = next(self.network.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def __call__(self, x_t: Tensor, t: Tensor | int, /) -> Tensor:
        """Predicted noise, shape of ``x_t`` (B, C, H, W); ``t`` is an int or has shape (B,)."""
        times = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        if torch.is_grad_enabled() and (x_t.requires_grad or self._trains()):
            self.evaluations += 3 * len(x_t)
            return self._noise(x_t, times)
        self.evaluations += len(x_t)
        return self._in_chunks(x_t, times)

    def _trains(self) -> bool:
        return any(p.requires_grad for p in self.network.parameters())

    def _in_chunks(self, x_t: Tensor, t: Tensor) -> Tensor:
        done: list[Tensor] = []
        start = 0
        while start < len(x_t):
            stop = start + self.batch_size
            try:
                done.append(self._noise(x_t[start:stop], t[start:stop]))
            except RuntimeError as error:
                if not out_of_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size = max(1, min(self.batch_size, len(x_t)) // 2)
                continue
            start = stop
        return torch.cat(done) if len(done) != 1 else done[0]

    def _noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return self._output(x_t, t)
        alpha, sigma = self.schedule.at(t, x_t)
        if self.prediction_type == "score":
            level = sigma / alpha / 2
            return -level * self._output((x_t / alpha + 1) / 2, level.flatten())
        output = self._output(x_t, t)
        if self.prediction_type == "v_prediction":
            return alpha * output + sigma * x_t
        return (x_t - alpha * output) / sigma

    def _output(self, x: Tensor, time: Tensor) -> Tensor:
        output = self.network(x, time)
        return output if isinstance(output, Tensor) else output.sample

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Evaluation mode, no gradients to the weights; restored on exit."""
        mode = self.network.training
        wanted = [p.requires_grad for p in self.network.parameters()]
        self.network.eval().requires_grad_(False)
        try:
            yield
        finally:
            self.network.train(mode)
            for parameter, flag in zip(self.network.parameters(), wanted, strict=True):
                parameter.requires_grad_(flag)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` is an allocator that gave up, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
