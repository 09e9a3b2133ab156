"""What a detector of another package is made of: names that stay. See docs/adding-a-method.md."""

from backdrift.core.randomness import SampleGenerator, derive_seed
from backdrift.detection._base import BUDGETS, Detection, Detector, Keep, Progress, check_budget
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._case import Case
from backdrift.detection._judge import Judge
from backdrift.detection._nulls import NULLS
from backdrift.detection._verdict import RESPONSE_COST, judge_inversion
from backdrift.inversion._base import (
    Candidate,
    Inversion,
    antithetic_noise,
    mean_noise,
    random_direction,
)

__all__ = [
    "BUDGETS",
    "NULLS",
    "RESPONSE_COST",
    "CalibrationTable",
    "Candidate",
    "Case",
    "Detection",
    "Detector",
    "Inversion",
    "Judge",
    "Keep",
    "Progress",
    "SampleGenerator",
    "antithetic_noise",
    "check_budget",
    "derive_seed",
    "judge_inversion",
    "mean_noise",
    "random_direction",
]
