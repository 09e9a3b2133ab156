"""Calibrations of made-up scores and features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdrift.core.model import DiffusionModel
from backdrift.detection._calibration import (
    CalibrationTable,
    Entry,
    Known,
    Population,
    Scored,
    settings_hash,
)


def scored(kind: str, values: Sequence[float] | Sequence[dict[str, float]]) -> list[Scored]:
    """Rows of scores, or of features with a score of 0."""
    return [
        Scored(model=f"{kind}-{i}", score=0.0, features=v)
        if isinstance(v, dict)
        else Scored(model=f"{kind}-{i}", score=v)
        for i, v in enumerate(values)
    ]


def table_of(
    detector: str,
    settings: dict[str, Any],
    model: DiffusionModel,
    clean: Sequence[Any],
    backdoored: Sequence[Any] = (),
    *,
    threshold: float = 0.5,
    **changes: Any,
) -> CalibrationTable:
    """One detector, quick, on clean models that are like ``model`` but for ``changes``."""
    entry = Entry(
        settings_sha256=settings_hash(settings),
        threshold=threshold,
        clean=scored("clean", clean),
        backdoored=scored("bad", backdoored),
    )
    known = Known.of("clean-0", model).model_copy(update=changes)
    return CalibrationTable(
        id="made-up",
        population=Population(description="made up", models=[known]),
        rule="none",
        seed=0,
        detectors={detector: {"quick": entry}},
    )


def saved(table: CalibrationTable, folder: Path) -> Path:
    """Path of its file."""
    file = folder / "calibration.json"
    file.write_text(table.model_dump_json(exclude_none=True))
    return file
