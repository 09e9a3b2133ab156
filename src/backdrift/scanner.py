"""The main job: load, invert, generate, score, verdict."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

from backdrift.core.alerts import exit_code, worst
from backdrift.core.environment import environment
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build, file_options
from backdrift.core.results import (
    Cost,
    NotScanned,
    Report,
    Subject,
    Verdict,
    Weights,
)
from backdrift.core.static import StaticFinding
from backdrift.detection._base import BUDGETS, Detection
from backdrift.io.errors import CheckpointError, NoSuchClass, NotScannable
from backdrift.io.load import check_label, distinct_candidates, load
from backdrift.io.plan import LoadPlan, plan
from backdrift.io.weights import Bounds, WeightPlan

Progress = Callable[[int, int, str], None]

ADVICE = {
    Verdict.BACKDOORED: "Do not use this model: a shift of its noise makes it draw one fixed image.",
    Verdict.NO_EVIDENCE: "No backdoor was found; that is not a proof that there is none.",
    Verdict.INCONCLUSIVE: "Do not rely on this scan: repeat it with --budget deep or look by hand.",
}
MOST_CLASSES = 10
"""More classes are scanned only when they are named."""
UNFINISHED = NotScanned(
    what="what is not among the stages of this report", why="the scan was ended before its time"
)
NOT_MEASURED = (
    NotScanned(what="triggers outside the starting noise", why="not part of this scan"),
    NotScanned(what="samplers and code around the model", why="only the weights are examined"),
)


def scan(
    path: str | Path,
    *,
    detector: str = "backdrift",
    budget: str = "standard",
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 256,
    options: dict[str, Any] | None = None,
    classes: Sequence[int] = (),
    bounds: Bounds | None = None,
    converted: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    keep: Callable[[Report], None] | None = None,
    command: str = "",
) -> Report:
    """Scans one checkpoint that nobody trusts.

    Args:
        path: folder of a ``DDPMPipeline``, ``DDIMPipeline``, ``PNDMPipeline``, ``ScoreSdeVePipeline``,
            ``LDMPipeline`` or bare ``UNet2DModel``, or a safetensors file of the last with its config
            beside it.
        detector: a plug-in of ``backdrift.detection``.
        budget: ``quick``, ``standard`` or ``deep``; see ``BUDGETS``. It holds for each weight file
            and class.
        seed: of everything random.
        device: for the network, as torch names it.
        batch_size: the most samples per forward pass; halves by itself when memory runs out.
        options: fields of the detector.
        classes: of a class-conditional model, the classes to scan; every one when empty.
        bounds: the largest weights to accept.
        converted: safetensors files made from pickle weights, by the name of those.
        progress: called as ``progress(done, total, text)``.
        keep: called with a partial report whenever a stage has ended: what there would be without the rest.
        command: recorded in the report; the Python call when empty.

    Returns:
        The report; ``report.evidence`` holds the images. Weights that cannot be loaded beside others
        that can are a finding in ``static``, and no less than exit code 2.

    Raises:
        CheckpointError: the checkpoint cannot be loaded; its ``exit_code`` says which kind it is.
        ValueError: an unknown detector, budget or option.
    """
    judge = build("detection", detector, {**(options or {}), "budget": budget})
    course = _Course(keep, seed, device, BUDGETS[budget])
    course.command = command or f"backdrift.scan({str(path)!r}, budget={budget!r}, seed={seed})"
    planned = plan(path, bounds, converted)
    labels = _labels(planned, classes)
    course.config = {
        "detector": detector,
        "budget": budget,
        "batch_size": batch_size,
        **({"classes": labels} if planned.classes else {}),
        **recorded(detector, options),
    }
    course.planned(planned)
    candidates, skipped = distinct_candidates(planned)
    course.left += skipped
    course.static += _variants(candidates)
    failures: list[CheckpointError] = []
    for name, model in _models(planned, candidates, labels, device):
        if isinstance(model, CheckpointError):
            failures.append(model)
            course.static.append(StaticFinding.of(model.rule, name, str(model)))
            continue
        model.batch_size = batch_size
        course.loaded(model)
        with model.frozen():
            course.judged(judge(model, seed=seed, progress=progress, keep=course.keep))
        del model
    if not course.detections:
        raise failures[0]
    return course.report()


class _Course:
    """What a scan has seen so far, and the report of it.

    Args:
        told: is given a partial report whenever a stage has ended.
        evaluations: the limit for each weight file and class.
    """

    plan: LoadPlan
    command: str
    config: dict[str, Any]

    def __init__(
        self, told: Callable[[Report], None] | None, seed: int, device: str, evaluations: int
    ) -> None:
        self.told, self.seed, self.device, self.evaluations = told, seed, device, evaluations
        self.started, self.begun = _now(), time.monotonic()
        self.static: list[StaticFinding] = []
        self.left: list[NotScanned] = []
        self.weights: list[Weights] = []
        self.detections: list[Detection] = []
        self.stages: list[str] = []

    def planned(self, found: LoadPlan) -> None:
        """The files have been looked at."""
        self.plan = found
        self.static += found.static
        self.left += found.not_scanned
        self.ended("files, configs and headers")

    def loaded(self, model: DiffusionModel) -> None:
        """One more model is about to be scanned."""
        self.static += [f for f in model.origin.findings if f not in self.static]
        self.weights.append(_weights(model))
        self.ended(f"{model.origin.weights}: loading")

    def keep(self, stage: str, so_far: Detection) -> None:
        """A stage of a detector has ended."""
        self.ended(f"{so_far.finding.weights}: {stage}", so_far)

    def judged(self, detection: Detection) -> None:
        """A detector is through with a model."""
        self.detections.append(detection)
        self.ended(f"{detection.finding.weights}: verdict")

    def ended(self, stage: str, *so_far: Detection) -> None:
        """Notes the end of a stage, and tells what there would be if the scan ended here."""
        self.stages.append(stage)
        if self.told is not None:
            self.told(self.report(*so_far, partial=True))

    def report(self, *so_far: Detection, partial: bool = False) -> Report:
        """Of everything up to now, unfinished detections too."""
        detections = [*self.detections, *so_far]
        findings = [detection.finding for detection in detections]
        verdict = worst([finding.verdict for finding in findings], partial)
        report = Report(
            version=metadata.version("backdrift"),
            started=self.started,
            finished=_now(),
            command=self.command,
            subject=subject_of(self.plan, self.weights),
            verdict=verdict,
            exit_code=0,
            uncalibrated=any(f.calibration is None or not f.calibration.in_range for f in findings),
            advice=ADVICE[verdict],
            findings=findings,
            static=list(self.static),
            measured=[
                f"{d.finding.weights}: noise-trigger backdoors by {d.finding.detector}"
                for d in self.detections
            ],
            not_measured=[*self.left, *((UNFINISHED,) if partial else ()), *NOT_MEASURED],
            config=self.config,
            seeds={"scan": self.seed},
            environment=environment(self.device),
            cost=Cost(
                evaluations=sum(f.evaluations for f in findings),
                evaluations_limit=self.evaluations * len(findings),
                seconds=time.monotonic() - self.begun,
            ),
            stages=list(self.stages),
            partial=partial,
            evidence=[d.evidence for d in detections if d.evidence is not None],
        )
        report.exit_code = exit_code(report)
        return report


def recorded(detector: str, options: dict[str, Any] | None) -> dict[str, Any]:
    """Options as a report has them: a file by its name and the beginning of its sha256."""
    found = dict(options or {})
    for key, path in file_options("detection", detector, options).items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[key] = f"{path.name}, sha256 {digest[:16]}"
    return found


def _weights(model: DiffusionModel) -> Weights:
    size = sum(p.numel() for p in model.network.parameters())
    origin = model.origin
    return Weights(file=origin.weights, sha256=origin.sha256, dtype=origin.dtype, parameters=size)


def _labels(planned: LoadPlan, classes: Sequence[int]) -> list[int | None]:
    if not planned.classes:
        if classes:
            raise NoSuchClass("--class: the model is not class-conditional")
        return [None]
    if not classes and planned.classes > MOST_CLASSES:
        raise NotScannable(
            f"the model has {planned.classes} classes, and a scan of each would take long; choose some "
            "with --class"
        )
    labels = list(dict.fromkeys(classes)) or list(range(planned.classes))
    for label in labels:
        check_label(planned, label)
    return [*labels]


def _models(
    planned: LoadPlan, candidates: Sequence[WeightPlan], labels: Sequence[int | None], device: str
) -> Iterator[tuple[str, DiffusionModel | CheckpointError]]:
    """Every model in turn with the name of its weights, or why it cannot be loaded."""
    for candidate, label in product(candidates, labels):
        found: DiffusionModel | CheckpointError
        try:
            found = load(planned, candidate, device, label)
        except CheckpointError as error:
            found = error
        yield candidate.name, found
        del found  # one model in memory at a time


def _variants(candidates: Sequence[WeightPlan]) -> list[StaticFinding]:
    first, *others = candidates
    text = f"other numbers than in {first.name}; each was scanned"
    return [StaticFinding.of("BD403", other.name, text) for other in others]


def subject_of(planned: LoadPlan, weights: list[Weights]) -> Subject:
    """What a report says about the checkpoint itself."""
    return Subject(
        path=str(planned.path),
        format=planned.format,
        declared=planned.declared,
        weights=weights,
        sample_shape=planned.sample_shape,
        prediction_type=planned.schedule_config.prediction_type,
        schedule=planned.schedule_config.facts(),
        network=_network(planned),
    )


def _network(planned: LoadPlan) -> dict[str, Any]:
    codec = planned.codec
    if codec is None:
        return dict(planned.network_config)
    decoder = {"weights": codec.weights.name, "image_shape": list(codec.image_shape), **codec.config}
    return {**planned.network_config, "vqvae": decoder}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
