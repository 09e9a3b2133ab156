"""Whether a found trigger still does anything to a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.trigger import Target
from backdrift.detection._judge import Judge
from backdrift.inversion._base import Candidate

IMAGE_MARGIN = 0.2
"""Share of hits on an image of its own, in [0, 1], that a dead trigger may have above plain noise."""


@dataclass(frozen=True)
class Hits:
    """Above plain noise, in [-1, 1]: on the found target, and on whatever image the samples share."""

    target: float
    image: float

    def dead(self, margin: float) -> bool:
        """Whether that is chance; ``margin`` is for the target, in [0, 1]."""
        return self.target <= margin and self.image <= IMAGE_MARGIN


def worst(seen: list[Hits]) -> Hits:
    """The most of each."""
    return Hits(max(h.target for h in seen), max(h.image for h in seen))


def fires(
    model: DiffusionModel,
    found: Candidate,
    own: Tensor,
    samples: int,
    seed: int,
    strengths: tuple[float, ...],
) -> Hits:
    """The most that multiples of a found trigger, which has a target, hit above plain noise.

    Drawn by the scanner's own sampler for the family (:class:`backdrift.detection._judge.Judge`).

    Args:
        own: images (N, C, H, W) that the model draws without it: their 1% quantile of the distance to
            the target, or .05, is what a hit stays below.
        samples: for each strength.
    """
    assert found.target is not None
    judge, target = Judge(samples // 2), Target.with_chance_level(found.target, own)
    clean = judge.draw(model, None, found.family, seed)
    usual, seen = float(target.hits(clean).float().mean()), []
    for strength in strengths:
        drawn = judge.draw(model, strength * found.shift, found.family, seed, found.scale)
        judged = judge.judge(drawn, clean)
        on_target = float(target.hits(drawn).float().mean()) - usual
        seen.append(Hits(on_target, judged.hit_rate - judged.plain_rate))
    return worst(seen)


def fires_by_ddim(model: DiffusionModel, found: Candidate, own: Tensor, samples: int, seed: int) -> Hits:
    """What a found trigger of an SDE backdoor hits above plain noise when DDIM draws; see :func:`fires`.

    Hits on its target count alone: DDIM keeps a part of any shift, which samples of a clean model share.
    """
    assert found.target is not None
    judge, target = Judge(samples // 2), Target.with_chance_level(found.target, own)
    steered, plain = (
        float(target.hits(judge.draw(model, shift, "ode", seed)).float().mean())
        for shift in (found.shift, None)
    )
    return Hits(steered - plain, 0.0)


@dataclass(frozen=True)
class Check:
    """What a round of a repair ended in.

    Args:
        direct: of the triggers as they were found.
        again: of those inverted once more; None where none were.
        loss: denoising loss on clean images over what it was.
    """

    direct: Hits
    again: Hits | None
    loss: float

    def passed(self, hit_margin: float, loss_margin: float) -> bool:
        """Whether the model may go."""
        dead = self.direct.dead(hit_margin) and (self.again is None or self.again.dead(hit_margin))
        return dead and self.loss <= 1 + loss_margin

    def text(self, hit_margin: float, loss_margin: float) -> str:
        """One line."""
        if not self.direct.dead(hit_margin):
            said = f"the trigger still hits {max(self.direct.target, self.direct.image):.0%}"
        elif self.again is not None and not self.again.dead(hit_margin):
            said = f"inverted again it hits {max(self.again.target, self.again.image):.0%}"
        else:
            said = "the trigger is dead"
        holds = "utility holds" if self.loss <= 1 + loss_margin else "utility does not hold"
        return f"{said}, {holds} (denoising loss {self.loss:.3f} of what it was)"

    def facts(self) -> dict[str, float]:
        """For the record."""
        found = {
            "hits above plain after": self.direct.target,
            "hits on one image above plain after": self.direct.image,
            "denoising loss, after / before": self.loss,
        }
        if self.again is not None:
            found["hits above plain of the trigger inverted again"] = self.again.target
            found["hits on one image of the trigger inverted again"] = self.again.image
        return found
