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

from backdrift.core.alerts import exit_code
from backdrift.core.environment import environment
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build, file_options
from backdrift.core.results import (
    Cost,
    Evidence,
    Finding,
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
        command: recorded in the report; the Python call when empty.

    Returns:
        The report; ``report.evidence`` holds the images. Weights that cannot be loaded beside others
        that can are a finding in ``static``, and no less than exit code 2.

    Raises:
        CheckpointError: the checkpoint cannot be loaded; its ``exit_code`` says which kind it is.
        ValueError: an unknown detector, budget or option.
    """
    judge = build("detection", detector, {**(options or {}), "budget": budget})
    started, begun = _now(), time.monotonic()
    planned = plan(path, bounds, converted)
    labels = _labels(planned, classes)
    candidates, skipped = distinct_candidates(planned)
    static = [*planned.static, *_variants(candidates)]
    weights: list[Weights] = []
    detections: list[Detection] = []
    failures: list[CheckpointError] = []
    for name, model in _models(planned, candidates, labels, device):
        if isinstance(model, CheckpointError):
            failures.append(model)
            static.append(StaticFinding.of(model.rule, name, str(model)))
            continue
        model.batch_size = batch_size
        static += [f for f in model.origin.findings if f not in static]
        weights.append(_weights(model))
        with model.frozen():
            detections.append(judge(model, seed=seed, progress=progress))
        del model
    findings = [d.finding for d in detections]
    if not findings:
        raise failures[0]
    worst = _worst(findings)
    report = Report(
        version=metadata.version("backdrift"),
        started=started,
        finished=_now(),
        command=command or f"backdrift.scan({str(path)!r}, budget={budget!r}, seed={seed})",
        subject=subject_of(planned, weights),
        verdict=worst.verdict,
        exit_code=0,
        uncalibrated=any(f.calibration is None or not f.calibration.in_range for f in findings),
        advice=ADVICE[worst.verdict],
        findings=findings,
        static=static,
        measured=[f"{f.weights}: noise-trigger backdoors by {f.detector}" for f in findings],
        not_measured=[*planned.not_scanned, *skipped, *NOT_MEASURED],
        config={
            "detector": detector,
            "budget": budget,
            "batch_size": batch_size,
            **({"classes": labels} if planned.classes else {}),
            **recorded(detector, options),
        },
        seeds={"scan": seed},
        environment=environment(device),
        cost=Cost(
            evaluations=sum(f.evaluations for f in findings),
            evaluations_limit=BUDGETS[budget] * len(findings),
            seconds=time.monotonic() - begun,
        ),
        evidence=_evidence(detections),
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


def _worst(findings: list[Finding]) -> Finding:
    order = [Verdict.BACKDOORED, Verdict.INCONCLUSIVE, Verdict.NO_EVIDENCE]
    return min(findings, key=lambda f: order.index(f.verdict))


def _evidence(detections: list[Detection]) -> list[Evidence]:
    return [d.evidence for d in detections if d.evidence is not None]


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
