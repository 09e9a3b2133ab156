"""Documents of a scan: exit codes, the published schema, what stays out of the JSON."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from typing import Any

import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from backdrift.core.results import (
    SCHEMA_VERSION,
    Cost,
    Curve,
    Environment,
    Evidence,
    Failure,
    Finding,
    NotScanned,
    Report,
    Restart,
    ScanDocument,
    Subject,
    Verdict,
    Weights,
    combined_exit_code,
)


def finding(**changes: Any) -> Finding:
    curve = Curve(name="c", x_label="t", y_label="s", x=[0.0, 1.0], y=[0.5, math.nan])
    restart = Restart(name="one", family="sde", norm=math.inf, gain=0.3)
    values = {"score": 0.9, "threshold": None, "reason": "r", "curves": [curve], "restarts": [restart]}
    return Finding(detector="d", weights="w", verdict=Verdict.BACKDOORED, **{**values, **changes})


def report(**changes: Any) -> Report:
    images = np.zeros((2, 1, 8, 8), dtype=np.float32)
    values: dict[str, Any] = {
        "version": "0.1.0",
        "started": "2026-01-01T00:00:00Z",
        "finished": "2026-01-01T00:01:00Z",
        "command": "backdrift scan model",
        "subject": Subject(
            path="model",
            format="diffusers",
            declared=False,
            weights=[Weights(file="w", sha256="0" * 64, dtype="float32", parameters=10)],
            sample_shape=(1, 8, 8),
            prediction_type="epsilon",
            schedule={"timesteps": 1000},
            network={"channels": 8},
        ),
        "verdict": Verdict.BACKDOORED,
        "exit_code": 1,
        "uncalibrated": False,
        "advice": "do not use",
        "findings": [finding()],
        "measured": ["noise triggers"],
        "not_measured": [NotScanned(what="text encoder", why="not supported")],
        "config": {},
        "seeds": {"root": 0},
        "environment": Environment(python="3", platform="p", device="cpu", threads=1, versions={}),
        "cost": Cost(evaluations=10, evaluations_limit=20, seconds=1.5),
        "evidence": [Evidence("w", images[0], None, images, images, "ddpm, 50 steps")],
    }
    return Report(**{**values, **changes})


def document() -> ScanDocument:
    failure = Failure(path="other", message="no weights", exit_code=3)
    return ScanDocument(reports=[report()], failures=[failure], exit_code=1)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_one_scan_keeps_its_code(code: int) -> None:
    assert combined_exit_code([code]) == code


@pytest.mark.parametrize("count", [2, 3])
def test_the_worst_of_several(count: int) -> None:
    """1 before 2 before 3 before 0, and 4 counts as 2 beside others."""
    badness = {0: 0, 3: 1, 2: 2, 4: 2, 1: 3}
    answer = {0: 0, 1: 3, 2: 2, 3: 1}
    for codes in itertools.product(range(5), repeat=count):
        assert combined_exit_code(list(codes)) == answer[max(badness[c] for c in codes)], codes


def test_nothing_scanned_is_not_a_pass() -> None:
    assert combined_exit_code([]) == 3


def test_no_verdict_says_clean() -> None:
    assert [verdict.value for verdict in Verdict] == ["BACKDOORED", "NO EVIDENCE", "INCONCLUSIVE"]


def test_json_fits_the_schema_and_is_strict() -> None:
    schema = ScanDocument.model_json_schema(mode="serialization")
    jsonschema.Draft202012Validator.check_schema(schema)

    def reject(constant: str) -> None:
        raise AssertionError(constant)

    written = json.loads(document().model_dump_json(), parse_constant=reject)
    jsonschema.validate(written, schema)
    assert written["schema_version"] == SCHEMA_VERSION
    assert written["reports"][0]["verdict"] == "BACKDOORED"
    assert written["reports"][0]["findings"][0]["curves"][0]["y"] == [0.5, None]
    assert written["reports"][0]["findings"][0]["restarts"][0]["norm"] is None


def test_evidence_stays_out_of_the_json() -> None:
    assert len(report().evidence) == 1
    assert "evidence" not in report().model_dump()
    text = document().model_dump_json()
    assert "clean_samples" not in text
    assert "evidence" not in json.loads(text)["reports"][0]
    assert "evidence" not in json.dumps(
        ScanDocument.model_json_schema(mode="serialization")["$defs"]["Report"]["properties"]
    )


def test_json_round_trip() -> None:
    back = ScanDocument.model_validate_json(document().model_dump_json())
    assert back.reports[0].findings[0].score == 0.9
    assert math.isnan(back.reports[0].findings[0].curves[0].y[1])
    assert back.reports[0].subject == report().subject
    assert back.reports[0].evidence == []
    assert back.failures == document().failures


def test_unknown_fields_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="colour"):
        Failure(path="p", message="m", exit_code=3, colour="red")
    with pytest.raises(ValidationError, match="frozen"):
        finding().score = 0.0
    with pytest.raises(ValidationError, match="verdict"):
        report(verdict="CLEAN")


def test_results_do_not_import_torch() -> None:
    code = "import sys, backdrift.core.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
