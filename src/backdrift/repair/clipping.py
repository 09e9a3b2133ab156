"""Inference-time clipping: every x_{t-1} of the sampler is clamped to the range of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from backdrift.core.hooks import SamplingHook
from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate
from backdrift.repair._base import Log, Progress, Repaired


@dataclass(frozen=True)
class Clipping:
    """Clamps to [-1, 1] at every step.

    BadDiffusion, arXiv 2212.05400, section 4.6.2 and appendix D: "clipping the image by the scaled image
    pixel range [-1, 1] at every time step". That is ``at = "x_t"``: the state after each step, its fresh
    noise included. ``at = "x_0"`` clamps the predicted x_0 instead (``clip_sample`` of diffusers, on by
    default there). Neither is for Heun and PNDM; x_0 is for DDPM and DDIM.

    Costs nothing and needs nothing. It changes no weights: the model stays backdoored.
    """

    changes_weights: ClassVar[bool] = False

    at: Literal["x_t", "x_0"] = "x_t"

    def most_evaluations(self) -> int:
        """What it costs at most, about; see :class:`backdrift.repair._base.Repair`."""
        return 0

    def __call__(
        self,
        model: DiffusionModel,
        evidence: Sequence[Candidate] = (),
        *,
        data: Tensor | None = None,
        seed: int,
        progress: Progress | None = None,
    ) -> Repaired:
        """See :class:`backdrift.repair._base.Repair`; a hook."""
        if self.at == "x_t":
            hook = SamplingHook("clipping of x_t", post_step=_clamp)
        else:
            hook = SamplingHook("clipping of x_0", clip_x0=True)
        return Repaired(model, hook, Log(self, seed, model).record("nothing to search", {}))


def _clamp(x: Tensor, t: int) -> Tensor:
    return x.clamp(-1, 1)
