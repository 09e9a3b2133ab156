"""``--resume DIR``: a report of every model that was scanned, by which a later run leaves it out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import typer
from pydantic import ValidationError

from backdrift.core.results import SCHEMA_VERSION, Evidence, Report
from backdrift.core.static import StaticFinding
from backdrift.io.files import replaced_file

_ARRAYS = ("trigger", "target", "clean_samples", "triggered_samples", "scale")


class Kept:
    """The folder of ``--resume``: a JSON and the arrays of the evidence for each model.

    A report is used again when the checkpoint reads the same (configs, hashes of its weights, labels),
    and version, settings, seed and device are those of this run. It is stored before a baseline or
    ``--strict`` has been applied, which may therefore change from run to run.

    Args:
        folder: is made when it is not there.
        settings: of this run, by :func:`settings_now`.
        classes: to be scanned of a class-conditional model; every one when empty.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], classes: Sequence[int] = ()) -> None:
        self.folder, self.settings, self.classes = folder, settings, classes
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, path: str) -> Report | None:
        """The report of the model at ``path``, or None when there is none that still holds."""
        files = self._files(path)
        try:
            report = Report.model_validate_json(files[0].read_text(encoding="utf-8"))
            evidence = _read_arrays(files[1])
        except (OSError, ValidationError, ValueError, KeyError):
            return None
        if settings_of(report) != self.settings or not _reads_the_same(report, self.classes):
            return None
        report.evidence = evidence
        return report

    def keep(self, report: Report) -> None:
        """Stores a report; the JSON comes last, so that one without its arrays never counts.

        A report that cannot be stored is still one: that costs a line on standard error.
        """
        document, arrays = self._files(report.subject.path)
        try:
            with replaced_file(arrays) as fresh, fresh.open("wb") as file:
                np.savez(file, **_arrays_of(report))
            with replaced_file(document) as fresh:
                fresh.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            typer.echo(f"backdrift: {self.folder} cannot keep this report: {error.strerror}", err=True)

    def _files(self, path: str) -> tuple[Path, Path]:
        name = hashlib.sha256(os.fsencode(Path(path).absolute())).hexdigest()[:32]
        return self.folder / f"{name}.json", self.folder / f"{name}.npz"


def settings_of(report: Report) -> dict[str, Any]:
    """What a report depends on beside the checkpoint, as JSON holds it."""
    kept = report.model_dump(mode="json", include={"schema_version", "version", "config", "seeds"})
    kept["config"].pop("classes", None)  # those of the report stand in the names of its weights
    return {**kept, "device": report.environment.device}


def settings_now(how: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The same of a run that is about to begin.

    Args:
        how: ``detector``, ``budget``, ``batch_size``, ``seed`` and ``device``.
        options: of the detector.
    """
    from backdrift.core.environment import environment
    from backdrift.scanner import recorded

    config = {name: how[name] for name in ("detector", "budget", "batch_size")}
    return {
        "schema_version": SCHEMA_VERSION,
        "version": metadata.version("backdrift"),
        "config": {**config, **recorded(how["detector"], options)},
        "seeds": {"scan": how["seed"]},
        "device": environment(how["device"]).device,
    }


def _reads_the_same(report: Report, classes: Sequence[int]) -> bool:
    """Whether the checkpoint is, but for the time, what the report was made of."""
    from backdrift.io.errors import CheckpointError
    from backdrift.io.load import distinct_candidates
    from backdrift.io.plan import plan
    from backdrift.io.tensors import content_hash
    from backdrift.scanner import subject_of

    subject = report.subject
    try:
        planned = plan(subject.path)
        again = subject_of(planned, subject.weights)
        if again.model_dump(mode="json") != subject.model_dump(mode="json"):
            return False
        candidates, skipped = distinct_candidates(planned)
        codec = [] if planned.codec is None else [planned.codec.weights]
        found = {candidate.name: content_hash(candidate, *codec) for candidate in candidates}
    except CheckpointError:
        return False
    labels = list(dict.fromkeys(classes)) or list(range(planned.classes))
    endings = [f" (class {label})" for label in labels] or [""]
    expected = [(name + ending, sha256) for name, sha256 in found.items() for ending in endings]
    left_out = all(item in report.not_measured for item in (*planned.not_scanned, *skipped))
    shown = _of_files(planned.static) == _of_files(report.static)
    return left_out and shown and expected == [(w.file, w.sha256) for w in subject.weights]


def _of_files(findings: Iterable[StaticFinding]) -> list[StaticFinding]:
    """Those that a plan shows; the others come with the weights, whose hash is compared."""
    return [finding for finding in findings if finding.rule.startswith("BD1")]


def _arrays_of(report: Report) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    texts = []
    for number, evidence in enumerate(report.evidence):
        texts.append({"weights": evidence.weights, "sampler": evidence.sampler})
        for name in _ARRAYS:
            array = getattr(evidence, name)
            if array is not None:
                arrays[f"{number}.{name}"] = array
    return {"texts": np.frombuffer(json.dumps(texts).encode(), np.uint8), **arrays}


def _read_arrays(path: Path) -> list[Evidence]:
    assert {field.name for field in fields(Evidence)} == {*_ARRAYS, "weights", "sampler"}
    with np.load(path, allow_pickle=False) as stored:
        texts = json.loads(stored["texts"].tobytes())
        return [
            Evidence(**text, **{name: stored.get(f"{number}.{name}") for name in _ARRAYS})
            for number, text in enumerate(texts)
        ]
