"""Reference models that are known to be clean or backdoored, and two decisions on their features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import derive_seed
from backdrift.core.results import Calibration
from backdrift.detection._base import calibration_table, out_of_range, settings_hash
from backdrift.metrics.rates import threshold_at, wilson

TREES = 100
FOLDS = 5


class Reference(BaseModel):
    """What a detector measured on one model whose nature is known.

    Args:
        features: by name; which side is suspicious is the detector's to know.
        sample_shape: this and what follows is needed of clean models: it says what they stand for.
        last_alpha: A_T of its noise schedule.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    backdoored: bool
    features: dict[str, FiniteFloat]
    sample_shape: tuple[int, int, int] | None = None
    parameters: int | None = None
    last_alpha: float | None = None

    @classmethod
    def of(
        cls, name: str, model: DiffusionModel, features: dict[str, float], *, backdoored: bool
    ) -> Reference:
        """A row of the table; ``features`` as the detector has them."""
        return cls(
            model=name,
            backdoored=backdoored,
            features=features,
            sample_shape=model.sample_shape,
            parameters=sum(p.numel() for p in model.network.parameters()),
            last_alpha=float(model.schedule.alpha[-1]),
        )


class References(BaseModel):
    """A table of reference models, all measured with the same settings.

    Args:
        description: of the population, for reports.
        settings_sha256: :func:`backdrift.detection._base.settings_hash` of what measured them.

    Raises:
        ValueError: fewer than two clean models, one backdoored model alone, rows of different features,
            or a clean model of which it is not said what it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    settings_sha256: str
    models: list[Reference]

    @model_validator(mode="after")
    def _whole(self) -> References:
        if len(self.clean) < 2 or len(self.backdoored) == 1:
            raise ValueError("references need two clean models, and two backdoored ones or none")
        if not self.models[0].features or any(m.features.keys() != self.names for m in self.models):
            raise ValueError("every reference needs the same features")
        if any(None in (row.sample_shape, row.parameters, row.last_alpha) for row in self.clean):
            raise ValueError("every clean reference needs its sample shape, parameters and last alpha")
        return self

    @classmethod
    def read(cls, path: str | Path) -> References:
        """A table from a JSON file.

        Raises:
            ValueError: no such file, or no such table in it; one line.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path} holds no table of references: {where} {first['msg']}") from None

    @classmethod
    def shipped(cls, detector: str, budget: str, settings: dict[str, Any]) -> References | None:
        """The calibration population, when it was measured with these settings and has features."""
        table = calibration_table()
        entry = table["detectors"].get(detector, {}).get(budget)
        if entry is None or entry["settings_sha256"] != settings_hash(settings):
            return None
        rows = [*entry["clean"], *entry["backdoored"]]
        if not all("features" in row for row in rows):
            return None
        facts = {row["model"]: row for row in table["population"]["models"]}
        known = ("sample_shape", "parameters", "last_alpha")
        models = [
            Reference(
                model=row["model"],
                backdoored=number >= len(entry["clean"]),
                features=row["features"],
                **{name: facts.get(row["model"], {}).get(name) for name in known},
            )
            for number, row in enumerate(rows)
        ]
        return cls(
            description=table["population"]["description"],
            settings_sha256=entry["settings_sha256"],
            models=models,
        )

    @property
    def names(self) -> set[str]:
        """Of the features."""
        return set(self.models[0].features)

    @property
    def clean(self) -> list[Reference]:
        """The clean models."""
        return [row for row in self.models if not row.backdoored]

    @property
    def backdoored(self) -> list[Reference]:
        """The backdoored models; may be empty."""
        return [row for row in self.models if row.backdoored]

    @property
    def sha256(self) -> str:
        """Of the content."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, features: dict[str, float]) -> None:
        """Raises ``ValueError`` for features that are not those of the table."""
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
        rows = [row.model_dump(mode="json") for row in references.clean]
        reasons = out_of_range(rows, model)
        return Calibration(
            id=f"references-{references.sha256[:12]}",
            population=references.description,
            n_clean=len(rows),
            n_backdoored=len(references.backdoored),
            threshold=self.threshold,
            false_positive_rate=self.false_positives / len(rows),
            interval=wilson(self.false_positives, len(rows)),
            in_range=not reasons,
            out_of_range=reasons,
            clean_scores=self.clean,
            backdoored_scores=self.backdoored,
        )


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
    clean = [row.features for row in references.clean]

    def limit(count: int) -> float:
        return (count - int(false_positive_rate * count + 1e-9)) / count

    alone = [share_below([other for other in clean if other is not row], row) for row in clean]
    return Decision(
        score=share_below(clean, features),
        threshold=limit(len(clean)),
        clean=alone,
        backdoored=[share_below(clean, row.features) for row in references.backdoored],
        false_positives=sum(each >= limit(len(clean) - 1) for each in alone),
        cuts={name: -threshold_at([-row[name] for row in clean], false_positive_rate) for name in features},
    )


def share_below(clean: Sequence[Mapping[str, float]], features: Mapping[str, float]) -> float:
    """The largest share of clean models that one of the features lies below, in [0, 1]."""
    reached = [sum(row[name] <= value for row in clean) for name, value in features.items()]
    return (len(clean) - min(reached)) / len(clean)


def by_forest(references: References, features: dict[str, float]) -> Decision:
    """The share of a random forest's votes for backdoored; flagged from a half on.

    scikit-learn's ``RandomForestClassifier`` with ``TREES`` trees and its defaults, seeded. The scores
    of the references come from cross-validation in ``FOLDS`` parts, or fewer for a small class.

    Raises:
        ValueError: other features than the table's, or no backdoored references.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    references.check(features)
    if not references.backdoored:
        raise ValueError("a forest is fitted on clean and on backdoored references: these are all clean")
    names = sorted(references.names)
    rows = np.array([[row.features[name] for name in names] for row in references.models])
    labels = np.array([row.backdoored for row in references.models])
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
