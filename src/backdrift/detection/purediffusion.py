"""PureDiffusion's detection: from the inverted trigger and from the target that it draws."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backdrift.core.model import DiffusionModel
from backdrift.detection._base import Detection, Keep, Progress, check_budget
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._case import Case
from backdrift.detection._judge import Judge
from backdrift.detection._nulls import NULLS
from backdrift.detection._verdict import RESPONSE_COST, judge_inversion
from backdrift.inversion.purediffusion import PureDiffusion as Inversion

STEPS = {"quick": 4, "standard": 25, "deep": 120}


@dataclass(frozen=True)
class PureDiffusion:
    """Inverts with the paper's two losses, then looks at what the inverted trigger draws.

    Truong and Le, IEEE TIFS 2026, arXiv 2502.19047. The abstract says that detection uses both the
    inverted trigger and the generated targets; features, threshold and classifier are not public to
    us. Here the candidate of the lowest loss per family and start is drawn with, and the same fresh
    seeds, nulls and score judge it as the default detector: what differs is the inversion.

    Args:
        budget: sets the steps of the inversion.
        calibration: a file of ``backdrift calibrate``, in place of the shipped one.
    """

    budget: str = "standard"
    calibration: Path | None = None

    def __post_init__(self) -> None:
        check_budget(self.budget)
        self._table()

    def _table(self) -> CalibrationTable:
        return CalibrationTable.choose(self.calibration, "purediffusion", self.budget, self.settings())

    def _parts(self) -> tuple[Inversion, Judge, Judge, tuple[str, ...]]:
        inversion = Inversion(steps=STEPS[self.budget])
        if self.budget == "quick":
            return inversion, Judge(2, 10), Judge(6, 8), ("opposite", "own image")
        return inversion, Judge(6, 20), Judge(20, 25), NULLS

    def settings(self) -> dict[str, Any]:
        """See :class:`backdrift.detection._base.Detector`."""
        inversion, look, judge, nulls = self._parts()
        parts = {"inversion": asdict(inversion), "look": asdict(look), "judge": asdict(judge)}
        return {"version": 2, "budget": self.budget, **parts, "nulls": nulls}

    def most_evaluations(self) -> int:
        """What the budget costs at most."""
        inversion, look, judge, nulls = self._parts()
        starts = len(inversion.families) * len(inversion.starts)
        looks = (starts + 2 * len(inversion.families)) * look.cost
        return inversion.cost + looks + (2 + len(nulls)) * judge.cost + RESPONSE_COST

    def __call__(
        self,
        model: DiffusionModel,
        *,
        seed: int,
        progress: Progress | None = None,
        keep: Keep | None = None,
    ) -> Detection:
        """See :class:`backdrift.detection._base.Detector`."""
        inversion, look, judge, nulls = self._parts()
        case = Case(model, "purediffusion", self.budget, self.settings(), seed, self._table(), keep)
        return judge_inversion(case, inversion, look=look, judge=judge, nulls=nulls, progress=progress)
