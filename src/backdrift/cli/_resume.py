"""``--resume DIR``: a report of every model that was scanned, by which a later run leaves it out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from backdrift.core.results import SCHEMA_VERSION, Report
from backdrift.core.static import StaticFinding
from backdrift.io.files import replaced_file
from backdrift.isolation import wire

if TYPE_CHECKING:
    from backdrift.io.weights import Bounds


class Kept:
    """The folder of ``--resume``: a file for each model, with the report and its arrays.

    A report is used again when the checkpoint reads the same (configs, hashes of its weights, labels),
    and version, settings, seed and device are those of this run. It is stored before a baseline or
    ``--strict`` has been applied, which may therefore change from run to run. The files are those that a
    process of its own would send (:mod:`backdrift.isolation.wire`).

    Args:
        folder: is made when it is not there.
        settings: of this run, by :func:`settings_now`.
        classes: to be scanned of a class-conditional model; every one when empty.
        bounds: the largest weights to accept.

    Raises:
        ValueError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        classes: Sequence[int] = (),
        bounds: Bounds | None = None,
    ) -> None:
        self.folder, self.settings, self.classes, self.bounds = folder, settings, classes, bounds
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--resume {folder}: {error.strerror}; name a folder") from None

    def find(self, path: str) -> Report | None:
        """The report of the model at ``path``, or None when there is none that still holds."""
        try:
            report = wire.read_stored(self._file(path).read_bytes())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if settings_of(report) != self.settings or not self._reads_the_same(path, report):
            return None
        report.subject = report.subject.model_copy(update={"path": path})
        return report

    def keep(self, report: Report) -> None:
        """Stores a report; one that cannot be stored is still one: that costs a line on standard error."""
        try:
            with replaced_file(self._file(report.subject.path)) as fresh, fresh.open("wb") as file:
                wire.send_report(report, file.write)
        except OSError as error:
            typer.echo(f"backdrift: {self.folder} cannot keep this report: {error.strerror}", err=True)

    def _file(self, path: str) -> Path:
        name = hashlib.sha256(os.fsencode(Path(path).absolute())).hexdigest()[:32]
        return self.folder / f"{name}.report"

    def _reads_the_same(self, path: str, report: Report) -> bool:
        """Whether the checkpoint at ``path`` is, but for the time, what the report was made of."""
        from backdrift.io.errors import CheckpointError
        from backdrift.io.load import distinct_candidates
        from backdrift.io.plan import plan
        from backdrift.io.tensors import content_hash
        from backdrift.scanner import subject_of

        weights = report.subject.weights
        try:
            planned = plan(path, self.bounds)
            again, before = (
                subject.model_dump(mode="json", exclude={"path"})
                for subject in (subject_of(planned, weights), report.subject)
            )
            if again != before:
                return False
            candidates, skipped = distinct_candidates(planned)
            codec = [] if planned.codec is None else [planned.codec.weights]
            found = {candidate.name: content_hash(candidate, *codec) for candidate in candidates}
        except CheckpointError:
            return False
        labels = list(dict.fromkeys(self.classes)) or list(range(planned.classes))
        endings = [f" (class {label})" for label in labels] or [""]
        expected = [(name + ending, sha256) for name, sha256 in found.items() for ending in endings]
        left_out = all(item in report.not_measured for item in (*planned.not_scanned, *skipped))
        shown = _of_files(planned.static) == _of_files(report.static)
        return left_out and shown and expected == [(w.file, w.sha256) for w in weights]


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


def _of_files(findings: Iterable[StaticFinding]) -> list[StaticFinding]:
    """Those that a plan shows; the others come with the weights, whose hash is compared."""
    return [finding for finding in findings if finding.rule.startswith("BD1")]
