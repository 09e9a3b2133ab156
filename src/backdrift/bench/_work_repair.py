"""What the cells of a benchmark's tasks do: repairs, and the search inside one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from backdrift.amplify import Amplify, Ball, reinforced
from backdrift.bench._work import Job, evidence_of
from backdrift.bench.runner import Outcome, Progress, Result
from backdrift.core.hooks import SamplingHook
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build
from backdrift.core.sampling import usual_sampler
from backdrift.core.trigger import Target
from backdrift.evaluate import CleanTwin, Plan, evaluate
from backdrift.groundtruth import Planted, load_backdoor
from backdrift.io.evidence import load_candidates
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.measures import Measure
from backdrift.metrics.mse import mse
from backdrift.metrics.specificity import specificity
from backdrift.repair._base import found_by


@dataclass(frozen=True, eq=False)
class Before:
    """A model before any repair.

    Args:
        stronger: its backdoor with a trigger that was reinforced on it.
        measures: ASR of both triggers.
        twin: its own clean samples, which those after a repair are set beside.
        evaluations: what all that took.
    """

    stronger: Planted
    measures: tuple[Measure, ...]
    twin: CleanTwin
    evaluations: int


def repair(job: Job, progress: Progress | None) -> Outcome:
    """The repaired model against the truth, which the repair is not told, and a second scan."""
    assert job.record is not None
    assert job.scanned is not None
    assert job.scan is not None
    task, seed = job.task, job.seed
    model, planted = load(plan(job.model), None, job.device), load_backdoor(job.record)
    how = task.measured(seed, usual_sampler(planted.record.sampler_family, model.schedule))
    data = planted.dataset(model.image_shape)
    scan = Result.model_validate_json(job.scanned.read_text(encoding="utf-8"))
    found = found_by({"evidence": load_candidates(evidence_of(job.scanned))}, model.sample_shape)
    some = data.some(task.images, seed) if task.images else None
    repaired = task.built()(model, found, data=some, seed=seed, progress=progress)
    after, hook, spent = repaired.model, repaired.hook, repaired.model.evaluations
    before = _before(job.model, job.record, job.device, how, seed)
    whole = evaluate(
        after,
        planted,
        data.images,
        how,
        reference=data.name,
        clean_twin=before.twin,
        hook=hook,
        progress=progress,
    )
    again = reinforced(planted, Amplify()(after, planted, Ball(), seed=seed + 1))
    rows = [*before.measures, *whole.measures]
    rows.append(_asr(after, before.stronger, how, "ASR reinforced before", hook))
    rows.append(_asr(after, again, how, "ASR reinforced again", hook))
    verdict = None
    if hook is None:
        second = build("detection", job.scan.method, job.scan.options)(after, seed=seed, progress=progress)
        verdict = str(second.finding.verdict)
    value = {
        "attack": planted.record.attack if job.record == job.model else "clean",
        "verdict_before": scan.value["verdict"],
        "verdict_after": verdict,
        "record": asdict(repaired.record),
        "reference": whole.reference,
        "hit": whole.hit,
        "weights_sha256": model.origin.sha256,
        "measures": [row.model_dump(mode="json") for row in rows],
    }
    return Outcome(
        resolved=task.resolved() | {"sampler": how.sampler, "seed": seed},
        value=value,
        evaluations=before.evaluations + repaired.record.evaluations + after.evaluations - spent,
    )


@lru_cache(maxsize=16)
def _before(folder: Path, record: Path, device: str, how: Plan, seed: int) -> Before:
    """Once for all repairs of a model in a process; the same in every process."""
    model, planted = load(plan(folder), None, device), load_backdoor(record)
    images = planted.dataset(model.image_shape).images
    stronger = reinforced(planted, Amplify()(model, planted, Ball(), seed=seed))
    measures = (
        _asr(model, planted, how, "ASR before"),
        _asr(model, stronger, how, "ASR before, reinforced"),
    )
    twin = CleanTwin.measure(model, images, how)
    return Before(stronger, measures, twin, model.evaluations)


def _asr(
    model: DiffusionModel, planted: Planted, how: Plan, name: str, hook: SamplingHook | None = None
) -> Measure:
    rows = specificity(model, planted.injection, planted.target, how, hook=hook)
    return rows[0].model_copy(update={"name": name})


def discover(job: Job, progress: Progress | None) -> Outcome:
    """The target that a search comes to: beside the true one, and what a defender sees of it."""
    assert job.record is not None
    task = job.task
    model, planted = load(plan(job.model), None, job.device), load_backdoor(job.record)
    if not isinstance(planted.target, Target):
        raise ValueError("this backdoor draws one of several images: a search is set beside one target")
    data = planted.dataset(model.image_shape)
    some = data.some(task.images, job.seed) if task.images else None
    method = task.built()
    looks: list[dict[str, Any]] = [
        {
            "step": one.step,
            "loss": one.loss,
            "collapse": one.collapse,
            "oracle_mse": float(mse(one.target[None].cpu(), planted.target.image)),
        }
        for one in method.discover(model, data=some, seed=job.seed, progress=progress)
    ]
    numbers = {
        "oracle MSE, best": min(one["oracle_mse"] for one in looks),
        "oracle MSE, last": looks[-1]["oracle_mse"],
        "collapse, most": max(one["collapse"] for one in looks),
    }
    about = {"low": None, "high": None, "n": method.samples}
    value = {
        "looks": looks,
        "weights_sha256": model.origin.sha256,
        "measures": [{"name": name, "value": number, **about} for name, number in numbers.items()],
    }
    return Outcome(
        resolved=task.resolved() | {"seed": job.seed},
        value=value,
        evaluations=model.evaluations + 2 * method.steps * method.batch_size,
    )
