"""How near samples are to a target: hits, MSE and SSIM, with a trigger or without."""

from __future__ import annotations

from collections.abc import Callable

from backdrift.core.hooks import SamplingHook
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.trigger import Target, TargetSet
from backdrift.metrics.bootstrap import Mean
from backdrift.metrics.draws import Plan
from backdrift.metrics.measures import Measure
from backdrift.metrics.mse import mse
from backdrift.metrics.rates import rate
from backdrift.metrics.ssim import ssim
from backdrift.metrics.utility import Utility


class Counter:
    """Progress over several calls of :func:`specificity`."""

    def __init__(self, progress: Callable[[int, int, str], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int, text: str) -> None:
        """``count`` more samples."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total, text)


def rule(target: Target | TargetSet) -> str:
    """What counts as a hit."""
    if isinstance(target, Target):
        return f"MSE below {target.threshold:.4f} to the target, images in [0, 1]"
    return f"the nearest image, of {len(target.images)} targets and the clean training set, is a target"


def specificity(
    model: DiffusionModel,
    injection: Injection | None,
    target: Target | TargetSet,
    plan: Plan,
    *,
    hook: SamplingHook | None = None,
    utility: Utility | None = None,
    count: Counter | None = None,
) -> list[Measure]:
    """Rate of hits, and mean MSE and SSIM to the target where that is one image, from 6 pixels on.

    Args:
        injection: of the trigger; without one the names say so.
        hook: a countermeasure.
        utility: is fed the same samples.

    Raises:
        CheckpointError: the model draws numbers that are not finite.
    """
    text, suffix = ("with trigger", "") if injection else ("without trigger", " without trigger")
    hits, done, scores = 0, 0, {"MSE": mse}
    if min(model.image_shape[1:]) >= 6:
        scores["SSIM"] = ssim
    means = {name: Mean(plan.seed) for name in scores} if isinstance(target, Target) else {}
    for samples in plan.draw(model, injection, hook):
        hits += int(target.hits(samples).sum())
        if isinstance(target, Target):
            for name, mean in means.items():
                mean.update(scores[name](samples, target.image))
        if utility is not None:
            utility.update(samples)
        done += len(samples)
        if count is not None:
            count.add(len(samples), text)
    name = ("ASR" if injection else "hits") + suffix
    rows = [plan.measure(name, rate(hits, done), f"share of hits, in [0, 1]; {rule(target)}")]
    about = "to the target, images in [0, 1], data range 1"
    return rows + [plan.measure(name + suffix, mean.compute(), about) for name, mean in means.items()]
