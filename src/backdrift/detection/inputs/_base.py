"""What every input detector shares: its interface, and a threshold from clean starting noise."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.metrics.rates import threshold_at


class InputDetector(Protocol):
    """Says of one starting noise whether it carries a trigger; the model is in use meanwhile.

    A detector of models (:class:`backdrift.detection._base.Detector`) answers once for a checkpoint;
    this one answers for every query. It sees the model and the starts and nothing else.
    """

    def scores(self, model: DiffusionModel, starts: Tensor, *, seed: int) -> Tensor:
        """One score for each start, higher when more suspicious: shape (N,), float64, on the CPU.

        The score of a start does not depend on what else is in the batch, or on where it stands.

        Args:
            starts: what the sampler would start from, (N, C, H, W), N at least 1.
            seed: of everything random.

        Raises:
            ValueError: starts that are not of the model's shape.
            CheckpointError: the model draws numbers that are not finite.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that the scores depend on, JSON-able; ``version`` grows when the code does."""
        ...

    def cost(self, n: int) -> int:
        """Network evaluations for ``n`` starts, at most."""
        ...


def clean_threshold(
    detector: InputDetector,
    model: DiffusionModel,
    *,
    n: int = 200,
    false_positive_rate: float = 0.05,
    seed: int,
) -> float:
    """A score that at most this share of plain starting noise lies above; what does is flagged.

    Clean starts are standard normal by definition, so a defender draws them and needs no data. Costs
    ``detector.cost(n)``.

    Args:
        n: clean starts; at least ``1 / false_positive_rate`` of them mean something.
        false_positive_rate: in [0, 1).
        seed: of the starts and of the detector.

    Raises:
        ValueError: no starts, or a rate outside its range.
    """
    starts = SampleGenerator(seed, n, "clean starts").normal(model.sample_shape, model.device)
    scores: list[float] = detector.scores(model, starts, seed=seed).tolist()
    return threshold_at(scores, false_positive_rate)


def check_starts(model: DiffusionModel, starts: Tensor) -> None:
    """Raises ``ValueError`` for starts that are not (N, C, H, W) of this model, N at least 1."""
    if starts.ndim != 4 or not len(starts) or tuple(starts.shape[1:]) != tuple(model.sample_shape):
        shape = ", ".join(map(str, model.sample_shape))
        raise ValueError(f"starts of shape {tuple(starts.shape)}; this model takes (N, {shape})")
