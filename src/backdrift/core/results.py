"""Results of a scan: versioned, serialisable, free of torch.

``ScanDocument.model_json_schema()`` is the published schema of ``--format json``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from backdrift.core.static import Acceptance, Limit, Record, StaticFinding, WeightFacts

SCHEMA_VERSION = "1.2"

Array = NDArray[np.float32]

Measured = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""A number that a model may drive out of its range: NaN and infinity are null in JSON."""


class Verdict(StrEnum):
    """What a scan says. There is no "clean": absence of evidence is all that a scan can report."""

    BACKDOORED = "BACKDOORED"
    NO_EVIDENCE = "NO EVIDENCE"
    INCONCLUSIVE = "INCONCLUSIVE"


class Score(Record):
    """One statistic of a detector.

    ``value`` is None when it was not measured; ``meaning`` says in one sentence what it is, with
    its unit or range.
    """

    name: str
    value: float | None
    meaning: str
    threshold: float | None = None
    suspicious_when: Literal["high", "low", "neither"] = "high"


class Null(Record):
    """A shift of the same norm as the inverted trigger that should do nothing special."""

    name: str
    score: float


class Curve(Record):
    """A line of the report; ``reference`` is what theory or a clean model would give."""

    name: str
    x_label: str
    y_label: str
    x: list[float]
    y: list[Measured]
    reference: list[float] | None = None
    reference_label: str = ""


class Restart(Record):
    """One start of an inversion: where it began, what it found."""

    name: str
    family: str
    norm: Measured
    gain: Measured
    score: float | None = None
    kept: bool = False


class Calibration(Record):
    """Where a threshold comes from.

    Args:
        false_positive_rate: measured on the clean models of the population.
        interval: Wilson 95% interval of that rate.
        in_range: whether the model under test lies inside what the population covers.
        clean_scores: score of every clean model; ``backdoored_scores`` likewise.
    """

    id: str
    population: str
    n_clean: int
    n_backdoored: int
    threshold: float
    false_positive_rate: float
    interval: tuple[float, float]
    in_range: bool
    out_of_range: list[str] = Field(default_factory=list)
    clean_scores: list[float] = Field(default_factory=list)
    backdoored_scores: list[float] = Field(default_factory=list)


class Finding(Record):
    """What one detector says about one weight file."""

    detector: str
    weights: str
    verdict: Verdict
    score: float | None
    threshold: float | None
    reason: str
    config: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    scores: list[Score] = Field(default_factory=list)
    nulls: list[Null] = Field(default_factory=list)
    curves: list[Curve] = Field(default_factory=list)
    restarts: list[Restart] = Field(default_factory=list)
    agreement: list[list[Measured]] = Field(default_factory=list)
    calibration: Calibration | None = None
    trigger_sha256: str = ""
    target_sha256: str = ""
    evaluations: int = 0
    seconds: float = 0.0


class Weights(Record):
    """One weight file that was scanned.

    ``sha256`` is taken over names, dtypes, shapes and bytes of the tensors that were loaded, not
    over header metadata, so a label in the metadata does not change it. Of a latent model it goes on over
    those of the VQ-VAE.
    """

    file: str
    sha256: str
    dtype: str
    parameters: int


class NotScanned(Record):
    """A file, or a part of the question, that was left out, and why."""

    what: str
    why: str


class Subject(Record):
    """The checkpoint.

    ``declared`` says that it labels itself as backdoored; no verdict reads it.
    """

    path: str
    format: str
    declared: bool
    weights: list[Weights]
    sample_shape: tuple[int, int, int]
    prediction_type: str
    schedule: dict[str, Any]
    network: dict[str, Any]


class Environment(Record):
    """What the numbers were computed with."""

    python: str
    platform: str
    device: str
    threads: int
    versions: dict[str, str]


class Cost(Record):
    """What a scan spent.

    One evaluation is one forward pass of one sample; a backward pass is two.
    """

    evaluations: int
    evaluations_limit: int
    seconds: float


@dataclass(frozen=True)
class Evidence:
    """The arrays behind a finding: float32, images in [-1, 1] as drawn (not clamped).

    Args:
        trigger: inverted trigger, (C, H, W), in units of the noise's standard deviation; of a latent model
            a latent, where all else is decoded.
        target: recovered target, (C, H, W), or None.
        clean_samples: (n, C, H, W), drawn from plain noise.
        triggered_samples: (n, C, H, W), the same seeds with the inverted trigger added.
        sampler: which sampler drew them, for example ``ddpm, 50 steps``.
        scale: gamma, the standard deviation of the noise under the trigger, of its shape; None is 1.
    """

    weights: str
    trigger: Array
    target: Array | None
    clean_samples: Array
    triggered_samples: Array
    sampler: str
    scale: Array | None = None


class Report(BaseModel):
    """The answer of ``backdrift.scan``: one checkpoint, one verdict.

    ``verdict`` is that of the most suspicious weight file. ``static`` is what the files show;
    ``limits`` is empty when the scan ran in the process of its caller. ``evidence`` holds arrays and is
    left out of the JSON. A ``partial`` report is what there was after its ``stages`` when a scan was ended
    before its time: its verdict is BACKDOORED or INCONCLUSIVE, its exit code never 0.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    schema_version: str = SCHEMA_VERSION
    tool: str = "backdrift"
    version: str
    started: str
    finished: str
    command: str
    subject: Subject
    verdict: Verdict
    exit_code: int
    uncalibrated: bool
    advice: str
    findings: list[Finding]
    static: list[StaticFinding] = Field(default_factory=list)
    measured: list[str]
    not_measured: list[NotScanned]
    config: dict[str, Any]
    seeds: dict[str, int]
    environment: Environment
    limits: list[Limit] = Field(default_factory=list)
    cost: Cost
    accepted: list[Acceptance] = Field(default_factory=list)
    stages: list[str] = Field(default_factory=list)
    partial: bool = False
    evidence: list[Evidence] = Field(default_factory=list, exclude=True)


class Failure(Record):
    """A checkpoint that was not scanned, or not to the end, and what was found: never a verdict."""

    path: str
    message: str
    exit_code: int
    rule: str = "BD005"
    partial: Report | None = None


class Inspection(Record):
    """The answer of ``scan --static-only``: files, configs and headers, no verdict.

    ``exit_code`` is 1 when a finding has level ``error``, else 0.
    """

    path: str
    format: str
    declared: bool
    weights: list[WeightFacts]
    sample_shape: tuple[int, int, int]
    static: list[StaticFinding]
    not_measured: list[NotScanned]
    exit_code: int


class ScanDocument(BaseModel):
    """What ``--format json`` writes: every report, every failure, one exit code.

    ``inspections`` stand in the place of reports when only the files were looked at. ``notices`` are
    remarks about the run itself, such as expired entries of a baseline.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: str = SCHEMA_VERSION
    reports: list[Report]
    failures: list[Failure] = Field(default_factory=list)
    inspections: list[Inspection] = Field(default_factory=list)
    notices: list[str] = Field(default_factory=list)
    exit_code: int

    @property
    def all_reports(self) -> list[Report]:
        """The reports, then the partial ones of scans that failed."""
        return [*self.reports, *(one.partial for one in self.failures if one.partial is not None)]


def combined_exit_code(codes: list[int]) -> int:
    """Exit code of several scans: 1 before 2 before 3 before 0; 4 counts as 2 beside others."""
    if len(codes) == 1:
        return codes[0]
    mapped = {2 if code == 4 else code for code in codes}
    return next((code for code in (1, 2, 3, 0) if code in mapped), 3)
