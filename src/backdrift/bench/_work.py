"""What the cells of a benchmark's tasks do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backdrift.bench.runner import Outcome, Progress
from backdrift.bench.truth import distances, success
from backdrift.core.registry import build
from backdrift.core.results import Verdict
from backdrift.core.sampling import usual_sampler
from backdrift.data import load_dataset
from backdrift.evaluate import Plan, evaluate
from backdrift.groundtruth import FILE, load_backdoor
from backdrift.io.evidence import save_candidates, save_images
from backdrift.io.load import load
from backdrift.io.plan import plan

if TYPE_CHECKING:
    from backdrift.bench.tasks import Task

SHOWN = 8
"""Samples without and with the inverted trigger that a detection keeps, as one small picture."""


def evaluation_plan(options: dict[str, Any], seed: int, sampler: str) -> Plan:
    """Raises ``ValueError`` for an option that a plan does not have."""
    try:
        return Plan(**{"sampler": sampler, **options, "seed": seed})
    except TypeError as error:
        raise ValueError(f"evaluate: {error}") from None


def detect(
    task: Task, folder: Path, seed: int, path: Path, device: str, progress: Progress | None
) -> Outcome:
    """The verdict, and how near its trigger is to the truth, which no detector sees."""
    model = load(plan(folder), None, device)
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
        place = path.parent / "evidence" / path.stem
        if place.exists():
            shutil.rmtree(place)
        arrays = [evidence.trigger], [evidence.target]
        save_candidates(*arrays, [{}], {"cell": path.name}, place, [evidence.scale])
        rows = [evidence.clean_samples[:SHOWN], evidence.triggered_samples[:SHOWN]]
        if len(rows[0]) == len(rows[1]) == SHOWN:
            save_images(np.concatenate(rows), place / "candidate-1" / "samples.png", columns=SHOWN)
    if evidence is not None and (folder / FILE).exists():
        planted = load_backdoor(folder)
        value["distances"] = distances(evidence, planted)
        if finding.verdict is Verdict.BACKDOORED:
            images = load_dataset(planted.record.data, model.image_shape).images
            value["success"] = success(model, evidence, planted, images)
    return Outcome(resolved=task.resolved(), value=value, evaluations=finding.evaluations)


def measure(
    task: Task, folder: Path, seed: int, path: Path, device: str, progress: Progress | None
) -> Outcome:
    """ASR and utility of a model whose backdoor is known."""
    model, planted = load(plan(folder), None, device), load_backdoor(folder)
    how = evaluation_plan(task.options, seed, usual_sampler(planted.record.sampler_family, model.schedule))
    data = load_dataset(planted.record.data, model.image_shape)
    found = evaluate(model, planted, data.images, how, reference=data.name, progress=progress)
    return Outcome(
        resolved=task.resolved() | {"sampler": how.sampler, "seed": seed},
        value=found.model_dump(mode="json"),
        evaluations=found.evaluations,
    )
