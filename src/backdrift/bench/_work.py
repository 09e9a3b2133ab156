"""What the cells of a benchmark's tasks do: detections and evaluations."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backdrift.bench.runner import Outcome, Progress
from backdrift.bench.truth import distances, success
from backdrift.core.registry import build
from backdrift.core.results import Verdict
from backdrift.core.sampling import usual_sampler
from backdrift.data import OnBad, load_dataset
from backdrift.evaluate import CleanTwin, Plan, evaluate
from backdrift.groundtruth import FILE, load_backdoor
from backdrift.io.evidence import save_candidates, save_images
from backdrift.io.load import load
from backdrift.io.plan import plan

if TYPE_CHECKING:
    from backdrift.bench._task import Task

SHOWN = 8
"""Samples without and with the inverted trigger that a detection keeps, as one small picture."""


@dataclass(frozen=True)
class Job:
    """What a cell is about. Its folders are there when it runs.

    Args:
        model: the checkpoint, all that a detector or a repair sees.
        path: of the result.
        record: the model whose backdoor is measured.
        twin: the clean model beside it.
        scan: the task behind ``scanned``, the result of a detection, which has its evidence beside it.
    """

    task: Task
    model: Path
    seed: int
    path: Path
    device: str = "cpu"
    record: Path | None = None
    twin: Path | None = None
    scan: Task | None = None
    scanned: Path | None = None


def evidence_of(path: Path) -> Path:
    """Where the detection with that result keeps what it found."""
    return path.parent / "evidence" / path.stem


def detect(job: Job, progress: Progress | None) -> Outcome:
    """The verdict, and how near its trigger is to the truth, which no detector sees."""
    task, folder, seed = job.task, job.model, job.seed
    model = load(plan(folder), None, job.device)
    found = build("detection", task.method, task.options)(model, seed=seed, progress=progress)
    finding, evidence = found.finding, found.evidence
    value: dict[str, Any] = {
        "verdict": str(finding.verdict),
        "score": finding.score,
        "threshold": finding.threshold,
        "reason": finding.reason,
        "seconds": finding.seconds,
        "scores": {score.name: score.value for score in finding.scores},
        "weights_sha256": model.origin.sha256,
    }
    if evidence is not None:
        place = evidence_of(job.path)
        if place.exists():
            shutil.rmtree(place)
        about = [{"sampler": evidence.sampler}], {"cell": job.path.name}
        save_candidates([evidence.trigger], [evidence.target], *about, place, [evidence.scale])
        rows = [evidence.clean_samples[:SHOWN], evidence.triggered_samples[:SHOWN]]
        if len(rows[0]) == len(rows[1]) == SHOWN:
            save_images(np.concatenate(rows), place / "candidate-1" / "samples.png", columns=SHOWN)
    if evidence is not None and (folder / FILE).exists():
        planted = load_backdoor(folder)
        value["distances"] = distances(evidence, planted)
        if finding.verdict is Verdict.BACKDOORED:
            images = planted.dataset(model.image_shape).images
            value["success"] = success(model, evidence, planted, images)
    return Outcome(resolved=task.resolved(), value=value, evaluations=finding.evaluations)


def measure(job: Job, progress: Progress | None) -> Outcome:
    """ASR and utility of a model with a backdoor that is known."""
    assert job.record is not None
    model, planted = load(plan(job.model), None, job.device), load_backdoor(job.record)
    usual = usual_sampler(planted.record.sampler_family, model.schedule)
    how = job.task.measured(job.seed, usual)
    data = planted.dataset(model.image_shape)
    source = planted.record.data, planted.record.on_bad
    twin = None if job.twin is None else _clean_twin(job.twin, job.device, source, how)
    found = evaluate(
        model, planted, data.images, how, reference=data.name, clean_twin=twin, progress=progress
    )
    return Outcome(
        resolved=job.task.resolved() | {"sampler": how.sampler, "seed": job.seed},
        value=found.model_dump(mode="json"),
        evaluations=found.evaluations,
    )


@lru_cache(maxsize=8)
def _clean_twin(folder: Path, device: str, source: tuple[str, OnBad], how: Plan) -> CleanTwin:
    """Once for all models of a process that it is set beside."""
    model = load(plan(folder), None, device)
    data = load_dataset(source[0], model.image_shape, on_bad=source[1])
    return CleanTwin.measure(model, data.images, how)
