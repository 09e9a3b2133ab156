"""Reference models that are known to be clean or backdoored, and two decisions on their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed
from backdrift.core.results import Calibration
from backdrift.detection._calibration import CalibrationTable
from backdrift.metrics.rates import threshold_at

TREES = 100
FOLDS = 5


@dataclass(frozen=True)
class References:
    """Models whose nature is known, with the features that one detector has of them.

    Args:
        table: the calibration that they are from.
        clean: features by name, one row for each clean model; ``backdoored`` likewise, may be empty.

    Raises:
        ValueError: fewer than two clean models, or rows of different features.
    """

    table: CalibrationTable
    clean: list[dict[str, float]]
    backdoored: list[dict[str, float]]

    def __post_init__(self) -> None:
        if len(self.clean) < 2:
            raise ValueError("references need two clean models")
        if not self.names or any(row.keys() != self.names for row in self.rows):
            raise ValueError("every reference needs the same features")

    @classmethod
    def of(
        cls, table: CalibrationTable, detector: str, budget: str, settings: dict[str, Any]
    ) -> References | None:
        """Those of a calibration, when it was made with these settings and has features."""
        entry = table.entry(detector, budget, settings)
        if entry is None or any(row.features is None for row in [*entry.clean, *entry.backdoored]):
            return None
        clean, backdoored = ([r.features or {} for r in rows] for rows in (entry.clean, entry.backdoored))
        return cls(table, clean, backdoored)

    @property
    def rows(self) -> list[dict[str, float]]:
        """The clean ones, then the backdoored ones."""
        return [*self.clean, *self.backdoored]

    @property
    def names(self) -> set[str]:
        """Of the features."""
        return set(self.clean[0])

    def check(self, features: dict[str, float]) -> None:
        """Raises ``ValueError`` for features that are not those of the references."""
        if features.keys() != self.names:
            known, got = ", ".join(sorted(self.names)), ", ".join(sorted(features))
            raise ValueError(f"the references have the features {known}, the model has {got}")


@dataclass(frozen=True)
class Decision:
    """Where a model stands among references; flagged from the threshold on.

    Args:
        score: in [0, 1], higher when more suspicious.
        clean: scores of the clean references, each judged by the others alone.
        backdoored: scores of the backdoored ones, likewise.
        false_positives: how many clean references the others would flag.
        cuts: threshold of each feature, where the decision has them.
    """

    score: float
    threshold: float
    clean: list[float]
    backdoored: list[float]
    false_positives: int
    cuts: dict[str, float]

    @property
    def flagged(self) -> bool:
        """Whether the model is called backdoored."""
        return self.score >= self.threshold

    def calibration(self, references: References, model: DiffusionModel) -> Calibration:
        """Where the threshold comes from, for the report on ``model``."""
        scores = self.clean, self.backdoored
        return references.table.beside(model, self.threshold, self.false_positives, *scores)


def by_thresholds(
    references: References, features: dict[str, float], false_positive_rate: float = 0.05
) -> Decision:
    """Flags a model when one feature is lower than that of all but a few clean models.

    Each feature has its own threshold, at ``false_positive_rate`` of the clean references; several
    features together flag more of them, by at most their number. Backdoored references are not read.
    The score is the largest share of clean models that a feature lies below.

    Args:
        false_positive_rate: for each feature, in [0, 1). With fewer than its inverse of clean models
            the threshold is the lowest of them, and the rate is that of a new minimum.

    Raises:
        ValueError: other features than the table's.
    """
    references.check(features)
    clean = references.clean
    alone = [share_below([other for other in clean if other is not row], row) for row in clean]
    return Decision(
        score=share_below(clean, features),
        threshold=share_at(len(clean), false_positive_rate),
        clean=alone,
        backdoored=[share_below(clean, row) for row in references.backdoored],
        false_positives=sum(each >= share_at(len(clean) - 1, false_positive_rate) for each in alone),
        cuts={name: -threshold_at([-row[name] for row in clean], false_positive_rate) for name in features},
    )


def share_at(count: int, false_positive_rate: float = 0.05) -> float:
    """The share of ``count`` clean models that a flagged model has a feature below, in (0, 1]."""
    return (count - int(false_positive_rate * count + 1e-9)) / count


def share_below(clean: Sequence[Mapping[str, float]], features: Mapping[str, float]) -> float:
    """The largest share of clean models that one of the features lies below, in [0, 1]."""
    reached = [sum(row[name] <= value for row in clean) for name, value in features.items()]
    return (len(clean) - min(reached)) / len(clean)


def by_forest(references: References, features: dict[str, float]) -> Decision:
    """The share of a random forest's votes for backdoored; flagged from a half on.

    scikit-learn's ``RandomForestClassifier`` with ``TREES`` trees and its defaults, seeded. The scores
    of the references come from cross-validation in ``FOLDS`` parts, or fewer for a small class.

    Raises:
        ValueError: other features than the table's, or fewer than two backdoored references.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    references.check(features)
    if len(references.backdoored) < 2:
        raise ValueError("a forest is fitted on clean and on backdoored references: two of each at least")
    names = sorted(references.names)
    rows = np.array([[row[name] for name in names] for row in references.rows])
    labels = np.arange(len(rows)) >= len(references.clean)
    folds = min(FOLDS, len(references.clean), len(references.backdoored))
    parts = StratifiedKFold(folds, shuffle=True, random_state=_seed("folds"))
    held_out = cross_val_predict(_forest(), rows, labels, cv=parts, method="predict_proba")[:, 1]
    fitted = _forest().fit(rows, labels)
    votes = fitted.predict_proba(np.array([[features[name] for name in names]]))
    clean = held_out[~labels].tolist()
    return Decision(
        score=float(votes[0, 1]),
        threshold=0.5,
        clean=clean,
        backdoored=held_out[labels].tolist(),
        false_positives=sum(vote >= 0.5 for vote in clean),
        cuts={},
    )


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=TREES, random_state=_seed("forest"))


def _seed(name: str) -> int:
    return derive_seed(0, "references", name) % 2**32
