"""Data-free unlearning of a found trigger, with the model's own clean predictions as teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed, generator
from backdrift.detection._judge import Judge
from backdrift.inversion._base import Candidate
from backdrift.inversion.joint import Joint
from backdrift.repair._base import (
    Log,
    Progress,
    Repaired,
    check_evidence,
    check_least,
    own_images,
    working_copy,
)
from backdrift.repair._dead import Check, Hits, fires, fires_by_ddim, worst
from backdrift.training import TrainingConfig, train

STRENGTHS = (0.7, 1.0, 1.4)
"""Multiples of a trigger that must all be dead."""
LOWS = (0.35, 0.2)
"""Smallest timesteps of shifted rows, as shares of T, tried in turn."""
SHARES = (4, 16, 64, 64)
"""One row in so many is shifted, in each quarter of a round."""
EMA = 0.98
"""Decay of the average of the student's weights in each quarter."""


@dataclass(frozen=True)
class Unlearn:
    """Teaches the model to take the trigger for noise.

    Ours. With the given model f_0 as the frozen teacher, images x_0 that it draws itself and
    ``u = A_t x_0 + S_t eps``, the student learns ::

        f(u, t)            = f_0(u, t)
        f(u + S_t s d, t)  = f_0(u, t) + s d,     d = tau + e,  ||e|| <= ball ||tau||,  s in scales

    the first over all t, the second near T. The second line has the first one's prediction of x_0,
    ``(x_t - S_t f) / A_t``, at a state with the trigger in it: the shift counts as noise. A clean model
    answers so near T alone; further down it reads a part of any shift as image, and the student learns to
    be blind to this one. A DDIM step of an exact student takes ``u + S_t tau`` to ``u' + S_p tau``, u'
    being where it takes u: from a triggered start it follows the path of the same start without the
    trigger, down to where the second line ends, and the rest of the shift is left to the model.

    The further down it reaches, the more it costs the clean images, which look like a shift now and then.
    So it begins at .35 T and goes down to T/5 if a trigger still fires. And a round has four quarters: at
    first every fourth row is shifted, which is quick to kill the trigger, then fewer and fewer, which takes
    the student back to the teacher elsewhere.

    The second line covers the states ``rho_t tau`` of a backdoor where ``rho_t / S_t`` lies in scales. That
    is 1 for TrojDiff and ``sqrt((1 - A_t) / (1 + A_t))`` for BadDiffusion: above .3 from T/5 up on the
    linear schedule of DDPM, from later on others. A quarter of the shifted rows have the found target y for
    x_0, which is where a firing backdoor leads, so that it is not entered half way either. With a scale of
    the noise (TrojDiff) the shifted rows have noise of a standard deviation between gamma and 1 as well, by
    the same rule.

    It works in rounds and ends by itself. After a round nothing may fire on fresh seeds, with the sampler
    of the scanner (:class:`backdrift.detection._judge.Judge`): the triggers of the pool at ``STRENGTHS``,
    those of the evidence and the SDE family with DDIM too, then each of that family inverted once more on
    the student (:class:`Joint`); one that comes back joins the pool. For ODE samplers an inversion would
    say nothing, so what it finds is not drawn by them: they keep a shift of the start, which steers a clean
    model to the target too.
    A trigger is dead when it hits its target at most ``hit_margin`` more often than plain noise, and any
    other image at most .2 more often, a difference that chance makes on so few samples. And the denoising
    loss on own images that were not trained on may be above the teacher's by ``loss_margin`` of it at most.
    What it cannot see is a backdoor that the scan did not find.

    Cost: ``images * sampling_steps``, and a round ``16 * steps * batch_size`` and its checks.

    Args:
        steps: of Adam in each quarter of a round; its rate falls from ``learning_rate`` to 0, over k in the
            k-th round.
        rounds: at most.
        batch_size: rows of a step.
        images: own ones; a quarter are kept for the check.
        sampling_steps: of DDPM for them.
        ball: of e, relative to the norm of the trigger.
        scales: range of s.
        hit_margin: share of hits on its target, in [0, 1], that a dead trigger may have above plain noise.
        judged: samples per check, even.
        inversion_steps: of the inversion that checks the student.
    """

    changes_weights: ClassVar[bool] = True

    steps: int = 150
    rounds: int = 8
    batch_size: int = 64
    learning_rate: float = 5e-4
    images: int = 256
    sampling_steps: int = 50
    ball: float = 0.3
    scales: tuple[float, float] = (0.3, 1.6)
    hit_margin: float = 0.02
    loss_margin: float = 0.01
    judged: int = 64
    inversion_steps: int = 60

    def __post_init__(self) -> None:
        check_least(self, steps=1, rounds=1, batch_size=4, images=4, judged=2, inversion_steps=1)

    def most_evaluations(self) -> int:
        """What it costs at most, about; see :class:`backdrift.repair._base.Repair`."""
        lessons = 4 * len(SHARES) * self.steps * self.batch_size
        check = 2 * (len(STRENGTHS) + 3) * self.judged * Judge.steps + 3 * 16 * self.inversion_steps
        return self.images * self.sampling_steps + self.rounds * (lessons + check)

    def __call__(
        self,
        model: DiffusionModel,
        evidence: Sequence[Candidate] = (),
        *,
        data: Tensor | None = None,
        seed: int,
        progress: Progress | None = None,
    ) -> Repaired:
        """See :class:`backdrift.repair._base.Repair`; uses no data."""
        check_evidence(evidence, model.sample_shape)
        student, teacher = working_copy(model), working_copy(model)
        log = Log(self, seed, student, teacher)
        with teacher.frozen():
            own = own_images(teacher, self.images, self.sampling_steps, seed)
            kept, held = own[self.images // 4 :], own[: self.images // 4]
            pool = [self._with_target(c, own) for c in evidence]
            given = tuple(pool)
            before = self._fires(teacher, given, pool, own, seed)
            depth = 0
            for number in range(self.rounds):
                seeds = [derive_seed(seed, "round", number, quarter) for quarter in range(len(SHARES))]
                quarters = [
                    _Lessons(self, teacher, kept, pool, LOWS[depth], every, at)
                    for every, at in zip(SHARES, seeds, strict=True)
                ]
                self._round(student, quarters, number, progress)
                log.spend(3 * self._steps(1) * self.batch_size)
                stream = derive_seed(seed, "check", number)
                check = self._check(student, teacher, given, pool, own, held, stream)
                said = f"round {number + 1}, {check.text(self.hit_margin, self.loss_margin)}"
                if progress is not None:
                    progress(self._steps(number + 1), self._steps(self.rounds), said)
                passed = check.passed(self.hit_margin, self.loss_margin)
                if passed:
                    break
                if not check.direct.dead(self.hit_margin):
                    depth = min(depth + 1, len(LOWS) - 1)
        ended = f"after {number + 1} rounds: {check.text(self.hit_margin, self.loss_margin)}"
        facts = {"hits above plain before": before.target, **check.facts()}
        return Repaired(student, None, log.record(ended, facts, held=passed))

    def _steps(self, rounds: int) -> int:
        return len(SHARES) * rounds * self.steps

    def _with_target(self, candidate: Candidate, own: Tensor) -> Candidate:
        target = own.mean(0) if candidate.target is None else candidate.target
        scale = None if candidate.scale is None else candidate.scale.to(own)
        return replace(candidate, shift=candidate.shift.to(own), target=target.to(own), scale=scale)

    def _round(
        self,
        student: DiffusionModel,
        quarters: list[_Lessons],
        number: int,
        progress: Progress | None,
    ) -> None:
        config = TrainingConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate / (number + 1),
            checkpoint_every=0,
            ema=EMA,
        )

        def show(quarter: int, done: int, total: int, text: str) -> None:
            if progress is not None:
                at = (len(SHARES) * number + quarter) * total + done
                progress(at, self._steps(self.rounds), f"round {number + 1}, {text}")

        cpu = student.device.type == "cpu"
        for quarter, lessons in enumerate(quarters):
            how = replace(config, seed=lessons.seed)
            train(student, len(lessons.images), lessons, how, cpu=cpu, progress=partial(show, quarter))

    def _fires(
        self,
        model: DiffusionModel,
        given: Sequence[Candidate],
        pool: Sequence[Candidate],
        own: Tensor,
        seed: int,
    ) -> Hits:
        """The most that any trigger of the pool does; by DDIM those that were given alone."""
        seen = [fires(model, c, own, self.judged, seed, STRENGTHS) for c in pool]
        plain = [c for c in given if c.family == "sde" and c.scale is None]
        return worst(seen + [fires_by_ddim(model, c, own, self.judged, seed) for c in plain])

    def _check(
        self,
        student: DiffusionModel,
        teacher: DiffusionModel,
        given: Sequence[Candidate],
        pool: list[Candidate],
        own: Tensor,
        held: Tensor,
        seed: int,
    ) -> Check:
        """Judges the student; triggers that came back are added to the pool."""
        with student.frozen():
            loss = _denoising_loss(student, held, seed) / _denoising_loss(teacher, held, seed)
            direct = self._fires(student, given, pool, own, seed)
            if not direct.dead(self.hit_margin):
                return Check(direct, None, loss)
            search = Joint(steps=self.inversion_steps, batch=16, learning_rate=0.04)
            again = []
            for candidate in [c for c in pool if c.family == "sde"]:
                back = search.refine(student, candidate, seed=seed)
                again.append(fires(student, back, own, self.judged, seed, (1.0,)))
                if not again[-1].dead(self.hit_margin):
                    pool.append(back)
        return Check(direct, worst(again) if again else None, loss)


class _Lessons:
    """Plain rows, then shifted ones; see :class:`Unlearn`.

    Args:
        low: the smallest timestep of shifted rows, as a share of T.
        every: one row in so many is shifted.
        seed: of a quarter of a round.
    """

    def __init__(
        self,
        method: Unlearn,
        teacher: DiffusionModel,
        images: Tensor,
        pool: list[Candidate],
        low: float,
        every: int,
        seed: int,
    ) -> None:
        self.method, self.teacher, self.images, self.pool = method, teacher, images, list(pool)
        self.low, self.every = low, every
        self.seed, self.stream = seed, generator(seed, "unlearn")

    @torch.no_grad()
    def __call__(self, index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        schedule, plain = self.teacher.schedule, len(index) - max(1, len(index) // self.every)
        low = int(self.low * len(schedule))
        t = t.clone()
        t[plain:] = low + t[plain:] * (len(schedule) - low) // len(schedule)
        x_0 = self.images[index.to(self.images.device)].to(noise)
        added = torch.zeros_like(noise)
        for row in range(plain, len(index)):
            found = self.pool[int(torch.randint(len(self.pool), (), generator=self.stream))]
            if (row - plain) % 4 == 3 and found.target is not None:
                x_0[row] = found.target
            added[row] = self._shift(found) + self._swell(found, noise[row])
        u = schedule.add_noise(x_0, noise, t)
        _, sigma = schedule.at(t, u)
        return u + sigma * added, self.teacher(u, t) + added, t

    def _shift(self, found: Candidate) -> Tensor:
        """``s (tau + e)``."""
        low, high = self.method.scales
        s, length = torch.rand(2, generator=self.stream).tolist()
        e = torch.randn(found.shift.shape, generator=self.stream).to(found.shift)
        e = e * (length * self.method.ball * found.shift.norm() / e.norm())
        shifted: Tensor = (low + (high - low) * s) * (found.shift + e)
        return shifted

    def _swell(self, found: Candidate, noise: Tensor) -> Tensor:
        """What a scale of the noise between gamma and 1 adds to it."""
        if found.scale is None:
            return torch.zeros_like(noise)
        share = float(torch.rand((), generator=self.stream))
        return share * (found.scale - 1) * noise


@torch.no_grad()
def _denoising_loss(model: DiffusionModel, images: Tensor, seed: int, draws: int = 8) -> float:
    """Mean squared error of the predicted noise over all timesteps, on the same noise for every model."""
    stream = generator(seed, "denoising loss")
    count = draws * len(images)
    t = torch.arange(count) * len(model.schedule) // count
    noise = torch.randn((count, *model.sample_shape), generator=stream).to(images)
    x_t = model.schedule.add_noise(images.repeat(draws, 1, 1, 1), noise, t.to(images.device))
    return float(((model(x_t, t.to(images.device)) - noise) ** 2).mean())
