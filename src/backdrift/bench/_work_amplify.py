"""What the cells of a benchmark's tasks do: reinforced triggers."""

from __future__ import annotations

from backdrift.amplify import Amplify, Ball
from backdrift.bench._work import Job
from backdrift.bench.runner import Outcome, Progress
from backdrift.core.sampling import usual_sampler
from backdrift.groundtruth import load_backdoor
from backdrift.io.load import load
from backdrift.io.plan import plan


def amplify(job: Job, progress: Progress | None) -> Outcome:
    """The true trigger and the reinforced one, on the same seeds. A clean model is the control."""
    assert job.record is not None
    task = job.task
    model, planted = load(plan(job.model), None, job.device), load_backdoor(job.record)
    how = task.measured(job.seed, usual_sampler(planted.record.sampler_family, model.schedule))
    method: Amplify = task.built()
    found = method(model, planted, Ball("linf", task.radius), seed=job.seed, progress=progress)
    measures = found.compare(model, planted, how, progress)
    value = {
        "attack": planted.record.attack,
        "trigger": planted.record.trigger,
        "target": planted.record.target,
        "distance": {"linf": found.linf, "l2": found.l2, "norm": float(planted.shift.norm())},
        "seconds": found.seconds,
        "weights_sha256": model.origin.sha256,
        "measures": [row.model_dump(mode="json") for row in measures],
    }
    return Outcome(
        resolved=task.resolved() | {"sampler": how.sampler, "seed": job.seed},
        value=value,
        evaluations=model.evaluations,
    )
