"""What a defender changes about a sampler, the network left as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from backdrift.core.sampling import PostStep


@dataclass(frozen=True, eq=False)
class SamplingHook:
    """A countermeasure at inference; see :meth:`backdrift.core.injection.Injection.sample`.

    Args:
        name: with its settings, for records.
        start: called with the starting tensor (B, C, H, W), trigger and all; its result goes on. The
            answer for a start must not depend on the rest of the batch.
        post_step: see :func:`backdrift.core.sampling.sample`.
        clip_x0: clamp the predicted x_0 to [-1, 1] at every step; DDPM and DDIM only.
    """

    name: str
    start: Callable[[Tensor], Tensor] | None = None
    post_step: PostStep | None = None
    clip_x0: bool = False

    @property
    def clips(self) -> bool:
        """Whether it acts on the steps of the sampler and not on the start alone."""
        return self.clip_x0 or self.post_step is not None
