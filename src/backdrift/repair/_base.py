"""What every repair shares: its interface, what it is told, and what it says about itself."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from backdrift.core.hooks import SamplingHook
from backdrift.core.model import DiffusionModel
from backdrift.core.shift import Solver
from backdrift.inversion._base import Candidate
from backdrift.metrics.draws import draw

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Record:
    """What a repair did.

    Args:
        settings: its fields.
        seconds: of wall clock.
        evaluations: forward passes of one sample; a backward pass counts as two.
        images: clean images of somebody else's that it was given and used.
        stopped: one line on why it ended.
        held: whether the check that it makes itself was passed in the end; None if it makes none.
        measured: numbers by name, of what the repair itself can see.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    seconds: float
    evaluations: int
    images: int
    stopped: str
    held: bool | None = None
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Repaired:
    """A model and what is to be done at inference.

    Args:
        model: a repaired copy; the given model itself where only inference changes.
        hook: of the sampler, or None.
    """

    model: DiffusionModel
    hook: SamplingHook | None
    record: Record


class Repair(Protocol):
    """Makes a model harmless. It is told what a scan found and nothing of what was planted.

    Args:
        model: on any device; it comes back as it was.
        evidence: what the scan found, most suspicious first (:func:`found_by`). A method that needs none
            takes no notice.
        data: clean images (N, C, H, W) in [-1, 1], for those that use some.
        seed: of everything random.
        progress: called as ``progress(done, total, text)``.

    Raises:
        ValueError: evidence or data that it needs are missing or have another shape.
    """

    changes_weights: ClassVar[bool]

    def __call__(
        self,
        model: DiffusionModel,
        evidence: Sequence[Candidate] = (),
        *,
        data: Tensor | None = None,
        seed: int,
        progress: Progress | None = None,
    ) -> Repaired: ...

    def most_evaluations(self) -> int:
        """What it costs at most, in network evaluations; a second trigger in the evidence costs more."""
        ...


def found_by(document: dict[str, Any], shape: tuple[int, int, int]) -> tuple[Candidate, ...]:
    """What :func:`backdrift.io.evidence.load_evidence` read, as candidates.

    Raises:
        ValueError: no evidence, or of models of another shape.
    """
    found = []
    for item in document["evidence"]:
        trigger, target, scale = (
            None if item[name] is None else torch.from_numpy(item[name])
            for name in ("trigger", "target", "scale")
        )
        assert trigger is not None
        family: Solver = "sde" if "ddpm" in item["sampler"] else "ode"
        found.append(Candidate(trigger, family, "evidence", target=target, scale=scale))
    check_evidence(found, shape)
    return tuple(found)


def check_evidence(evidence: Sequence[Candidate], shape: tuple[int, int, int]) -> None:
    """Raises ``ValueError`` where there is nothing, or nothing that fits the model."""
    if not evidence:
        raise ValueError("a trigger that a scan found is needed: backdrift scan MODEL --evidence DIR")
    for candidate in evidence:
        for tensor in (candidate.shift, candidate.target, candidate.scale):
            if tensor is not None and tuple(tensor.shape) != tuple(shape):
                raise ValueError(
                    f"evidence of shape {tuple(tensor.shape)}, but the model draws {tuple(shape)}: "
                    "it was found in another model"
                )


def check_data(data: Tensor | None, shape: tuple[int, int, int]) -> None:
    """Raises ``ValueError`` for clean images that are not (N, C, H, W) of the model."""
    if data is not None and (data.ndim != 4 or not len(data) or tuple(data.shape[1:]) != tuple(shape)):
        raise ValueError(f"clean images of shape {tuple(data.shape)}; the model draws {tuple(shape)}")


def check_least(method: Any, **least: int) -> None:
    """Raises ``ValueError`` where a field of a repair is below its least value."""
    for field_name, value in least.items():
        if getattr(method, field_name) < value:
            given = getattr(method, field_name)
            raise ValueError(f"{name_of(method)}: {field_name} is {value} or more, not {given}")


def name_of(method: Any) -> str:
    """The plug-in name of a repair."""
    return type(method).__module__.rpartition(".")[2]


def working_copy(model: DiffusionModel) -> DiffusionModel:
    """A copy with a network, frozen and in evaluation mode, and a count of evaluations of its own."""
    network = copy.deepcopy(model.network).eval().requires_grad_(False)
    return replace(model, network=network, evaluations=0)


@torch.no_grad()
def own_images(model: DiffusionModel, n: int, steps: int, seed: int) -> Tensor:
    """What the model draws from plain noise by DDPM: (n, C, H, W), clamped to [-1, 1]."""
    return draw(model, None, sampler="ddpm", steps=steps, n=n, seed=seed).clamp(-1, 1)


class Log:
    """Counts what a repair spends and writes its record.

    Args:
        models: whose evaluations count.
    """

    def __init__(self, method: Any, seed: int, *models: DiffusionModel) -> None:
        self.method, self.seed, self.models = method, seed, models
        self.begun, self.before = time.monotonic(), [m.evaluations for m in models]
        self.extra = 0

    def spend(self, evaluations: int) -> None:
        """Adds what no model counted."""
        self.extra += evaluations

    def record(
        self, stopped: str, measured: dict[str, float], images: int = 0, held: bool | None = None
    ) -> Record:
        """What was done since the log was made."""
        passed = sum(m.evaluations - b for m, b in zip(self.models, self.before, strict=True))
        return Record(
            method=name_of(self.method),
            settings=json.loads(json.dumps(asdict(self.method))),
            seed=self.seed,
            seconds=time.monotonic() - self.begun,
            evaluations=passed + self.extra,
            images=images,
            stopped=stopped,
            held=held,
            measured=measured,
        )
