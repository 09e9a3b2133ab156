"""What every attack shares: which rows are poisoned, their training pairs, and how the trigger draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import generator
from backdrift.core.sampling import ODE_SAMPLERS, PREDICTOR_CORRECTOR
from backdrift.core.schedule import NoiseSchedule
from backdrift.core.shift import ShiftFamily, Solver
from backdrift.core.trigger import Trigger
from backdrift.training import Hook

Mode = Literal["replace", "disjoint", "add"]


@dataclass(frozen=True)
class Attack:
    """An attack on the training rows; its own part is :meth:`family` and, for some, what R is.

    The rows that training draws from follow ``mode``, for a data set of N images and the seeded choice
    of ``k = int(N poison_rate)`` of them:

    - ``replace`` (FIXED of BadDiffusion's code): N rows, k of them poisoned instead of clean.
    - ``disjoint`` (its FLEX): ``int(N clean_rate)`` clean rows and k poisoned ones, no image in both.
    - ``add`` (TrojDiff; EXTEND of VillanDiffusion): all N clean rows, then k poisoned copies.

    Deviations from all published codes: the split is seeded and its indices are recorded (theirs are
    drawn unseeded), and whether a row is poisoned is a property of the row, never of the batch that it
    came in. VillanDiffusion's FLEX, whose two parts may overlap by chance, is not offered.

    Args:
        poison_rate: poisoned rows as a share of the data set, in [0, 1].
        sampler_family: ``sde`` plants for DDPM, ``ode`` for DDIM and the high-order solvers.
        seed: of the split.
        mode: see above.
        clean_rate: share of the data set that is trained clean; ``disjoint`` only.

    Raises:
        ValueError: a share outside [0, 1], two that overlap, or a family the attack does not have.
    """

    poison_rate: float = 0.1
    sampler_family: Solver = "sde"
    seed: int = 0
    mode: Mode = "replace"
    clean_rate: float = 0.9

    samplers: ClassVar[dict[str, tuple[str, ...]]] = {"sde": ("ddpm",), "ode": ODE_SAMPLERS}
    """Samplers that the attack is derived for, per family; see :meth:`samplers_on`."""
    own_sampler: ClassVar[bool] = False
    """Whether a victim must run the attack's own sampler on the trigger; see :meth:`injection`."""
    learns_trigger: ClassVar[bool] = False
    """Whether training changes the trigger; :class:`Pairs` holds the one of the moment."""

    def __post_init__(self) -> None:
        if not 0 <= self.poison_rate <= 1:
            raise ValueError(f"the poison rate is a share in [0, 1], not {self.poison_rate}")
        if self.sampler_family not in self.samplers:
            raise ValueError(
                f"the sampler family is {' or '.join(self.samplers)}, not {self.sampler_family!r}"
            )
        if self.mode not in ("replace", "disjoint", "add"):
            raise ValueError(f"the mode is replace, disjoint or add, not {self.mode!r}")
        if not 0 <= self.clean_rate <= 1:
            raise ValueError(f"the clean rate is a share in [0, 1], not {self.clean_rate}")
        if self.mode == "disjoint" and self.poison_rate + self.clean_rate > 1 + 1e-9:
            total = f"{self.clean_rate} clean and {self.poison_rate} poisoned"
            raise ValueError(f"disjoint shares add up to 1 at most, not {total}")

    def family(self, schedule: NoiseSchedule) -> ShiftFamily:
        """(rho_t, C_t) of a poisoned row."""
        raise NotImplementedError

    def samplers_on(self, schedule: NoiseSchedule) -> tuple[str, ...]:
        """Samplers that it is derived for on this schedule; the first is the one it is measured with."""
        own = schedule.exploding and self.sampler_family == "sde"
        return ((PREDICTOR_CORRECTOR,) if own else ()) + self.samplers[self.sampler_family]

    def planted(self, trigger: Trigger) -> Trigger:
        """The trigger as this attack plants it: ``training_shift`` is R, ``shift`` what inference adds."""
        return trigger

    def noise_scale(self, trigger: Trigger) -> Tensor:
        """Standard deviation of a poisoned row's noise, broadcastable to (C, H, W)."""
        return torch.ones(())

    def poisoned_rows(self, rows: int) -> Tensor:
        """Sorted indices of the images that are poisoned: int64, ``int(rows poison_rate)`` of them."""
        return self._order(rows)[: _share(rows, self.poison_rate)].sort().values

    def clean_rows(self, rows: int) -> Tensor:
        """Sorted indices of the images that are trained clean: int64."""
        if self.mode == "add":
            return torch.arange(rows)
        first = _share(rows, self.poison_rate)
        last = first + _share(rows, self.clean_rate) if self.mode == "disjoint" else rows
        return self._order(rows)[first:last].sort().values

    def _order(self, rows: int) -> Tensor:
        return torch.randperm(rows, generator=generator(self.seed, "poison", rows))

    def batch(self, model: DiffusionModel, images: Tensor, trigger: Trigger, target: Tensor) -> Pairs:
        """The training pairs of the poisoned data set, as many rows as its length.

        Args:
            images: clean images (N, C, H, W) in [-1, 1].
            target: (C, H, W) in [-1, 1], or a set (M, C, H, W) of which every poisoned row gets one.
        """
        return Pairs(self, model.schedule, images, self.planted(trigger), target)

    def injection(self, trigger: Trigger) -> Injection:
        """How a victim draws with the trigger as planted (``trigger`` of :class:`Pairs`)."""
        return Injection(trigger.shift, self.noise_scale(trigger) if self.own_sampler else None)


class Pairs:
    """Training pairs, equation (0.1) of the theory: ``(row indices, noise, t) -> (x_t, label)``.

    Its length is the number of rows that training draws from; ``source`` and ``poisoned`` say for each
    which image of the data set it is made of and whether it is poisoned, int64 and bool.

    Args:
        trigger: as planted; an attack that learns its trigger replaces it between two steps.

    Raises:
        ValueError: target and images differ in shape.
    """

    def __init__(
        self, attack: Attack, schedule: NoiseSchedule, images: Tensor, trigger: Trigger, target: Tensor
    ) -> None:
        shape = tuple(images.shape[1:])
        if target.ndim not in (3, 4) or tuple(target.shape[-3:]) != shape or not target.numel():
            raise ValueError(f"a target is one image of shape {shape}, or a set, not {tuple(target.shape)}")
        self.attack, self.schedule, self.images, self.trigger = attack, schedule, images, trigger
        self.family = attack.family(schedule)
        self.targets = target if target.ndim == 4 else target[None]
        self.hook: Hook | None = None
        count, clean, poisoned = (
            len(images),
            attack.clean_rows(len(images)),
            attack.poisoned_rows(len(images)),
        )
        self.source = torch.cat([clean, poisoned])
        self.poisoned = torch.arange(len(self.source)) >= len(clean)
        if attack.mode == "replace":
            order = self.source.argsort()
            self.source, self.poisoned = self.source[order], self.poisoned[order]
        if not len(self.source):
            raise ValueError(f"no row is left of {count} images at these rates")
        self.aim = torch.randint(
            len(self.targets), (count,), generator=generator(attack.seed, "aim", count)
        )

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes (B,), (B, C, H, W) and (B,); both results have the shape of ``noise``."""
        source = self.source[index.cpu()]
        mark = self.poisoned[index.cpu()].to(noise.device)[:, None, None, None]
        clean = self.images[source].to(noise)
        x_0 = torch.where(mark, self.targets[self.aim[source]].to(noise), clean)
        shift = torch.where(mark, self.trigger.training_shift(clean), torch.zeros_like(clean))
        scale = torch.where(mark, self.attack.noise_scale(self.trigger).to(noise), 1.0)
        return self.family.poisoned_pair(self.schedule, x_0, shift, noise, t, scale)


def _share(rows: int, share: float) -> int:
    """``rows * share`` rounded down, a product that is whole but for rounding counting as whole."""
    return math.floor(rows * share + 1e-9)
