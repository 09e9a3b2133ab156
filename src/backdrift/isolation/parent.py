"""Starts the process that scans, streams its progress, ends it when it goes too far."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backdrift.core.results import Report
from backdrift.core.static import Limit
from backdrift.io.errors import CheckpointError, printable, shown
from backdrift.io.plan import network_pickles
from backdrift.io.weights import Bounds
from backdrift.isolation import wire
from backdrift.isolation.limits import GIB, Limits, default_memory, environment, import_path

Progress = Callable[[int, int, str], None]

_BOOT = (
    "import json, sys; job = json.loads(sys.stdin.buffer.readline()); sys.path[:] = job['sys_path']; "
    "from backdrift.isolation.child import main; main(job)"
)
_CHUNK = 1 << 20
_TAIL = 4096


def scan_isolated(
    path: str | Path,
    *,
    detector: str = "backdrift",
    budget: str = "standard",
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 256,
    options: dict[str, Any] | None = None,
    classes: Sequence[int] = (),
    bounds: Bounds | None = None,
    limits: Limits | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Report:
    """:func:`backdrift.scan` in a process of its own, with less power and an end.

    The report is the same but for ``limits``, which says what the platform enforced.

    Args:
        limits: memory and wall clock.
        allow_pickle: convert pickle weights in one more process (see :mod:`backdrift.io.convert`) and
            scan the result.

    Raises:
        CheckpointError: as :func:`backdrift.scan`; the process ran out of time or memory, or died; or
            it raised another error, as for an unknown detector (its ``rule`` says which).
    """
    job = {
        "task": "scan",
        "how": {
            "detector": detector,
            "budget": budget,
            "seed": seed,
            "device": device,
            "batch_size": batch_size,
            "options": options,
            "classes": list(classes),
        },
        "device": device,
        "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
        "bounds": asdict(bounds or Bounds()),
        "converted": {},
        "folder": os.getcwd(),
    }
    limits = limits or Limits()
    end = time.monotonic() + limits.seconds
    with tempfile.TemporaryDirectory(prefix="backdrift-") as scratch:
        if allow_pickle:
            job["converted"] = _convert_all(path, Path(scratch), bounds or Bounds(), limits, end)
        answers = _Run(path, job, limits, end, progress).answers()
    evidence = [_checked(wire.read_evidence, data) for kind, data in answers if kind == wire.ARRAYS]
    reports = [_checked(wire.read_report, data) for kind, data in answers if kind == wire.REPORT]
    if len(reports) != 1:
        raise CheckpointError("the process that scanned ended without a report; no verdict", "BD008")
    report: Report = reports[0]
    report.evidence = evidence
    report.subject = report.subject.model_copy(update={"path": str(path)})
    report.command = command or f"backdrift.scan_isolated({str(path)!r}, budget={budget!r}, seed={seed})"
    return report


def probe(limits: Limits | None = None) -> list[Limit]:
    """What this platform enforces: starts a process, limits it, and asks."""
    limits = limits or Limits(seconds=60)
    job = {"task": "probe", "device": "cpu"}
    answers = _Run(os.devnull, job, limits, time.monotonic() + limits.seconds).answers()
    return [Limit.model_validate(row) for kind, data in answers for row in json.loads(data)]


def _convert_all(
    path: str | Path, scratch: Path, bounds: Bounds, limits: Limits, end: float
) -> dict[str, str]:
    made: dict[str, str] = {}
    for number, (name, source) in enumerate(sorted(network_pickles(path).items())):
        target = scratch / f"{number}.safetensors"
        with target.open("wb") as file:
            job = {"task": "convert", "device": "cpu", "descriptor": file.fileno(), "size": bounds.size}
            _Run(source, job, limits, end).answers(file.fileno())
        made[name] = str(target)
    return made


class _Run:
    """One child process and what it sends."""

    def __init__(
        self,
        path: str | Path,
        job: Mapping[str, Any],
        limits: Limits,
        end: float,
        progress: Progress | None = None,
    ) -> None:
        self.limits, self.end, self.progress = limits, end, progress
        self.memory = limits.memory or default_memory()
        absolute = os.path.abspath(path)
        self.job = {
            **job,
            "path": os.fsencode(absolute).hex(),
            "sys_path": import_path(absolute),
            "memory": self.memory,
            "seconds": limits.seconds,
        }
        self.tail = bytearray()

    def answers(self, *descriptors: int) -> list[tuple[bytes, bytes]]:
        """Every frame but progress, in order; the last is ``DONE``."""
        found: list[tuple[bytes, bytes]] = []
        size = 0
        with (
            tempfile.TemporaryDirectory(prefix="backdrift-") as place,
            self._started(place, descriptors) as process,
        ):
            for kind, payload in self._frames(process):
                if kind == wire.PROGRESS:
                    self._show(payload)
                elif kind == wire.FAILURE:
                    raise _checked(self._failure, payload)
                else:
                    found.append((kind, payload))
                    size += len(payload)
                    if size > wire.MOST_BYTES or len(found) > wire.MOST_FRAMES:
                        raise _invalid()
            code = self._wait(process)
        if code != 0 or not found or found[-1][0] != wire.DONE:
            raise self._died(code)
        return found

    def _failure(self, payload: bytes) -> CheckpointError:
        if os.environ.get("BACKDRIFT_DEBUG"):
            sys.stderr.write(self.tail.decode("utf-8", "replace"))
        facts = json.loads(payload)
        if facts["rule"] == "BD007":
            return self._no_memory()
        error = CheckpointError(str(facts["message"]), str(facts["rule"]))
        error.exit_code = facts["exit_code"] if facts["exit_code"] in (3, 4) else 2
        return error

    @contextmanager
    def _started(self, place: str, descriptors: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=place,
            env=environment(),
            pass_fds=descriptors,
            start_new_session=True,
        )
        try:
            with process:
                try:
                    assert process.stdin is not None
                    with suppress(BrokenPipeError):  # it died at once; its exit code says so
                        process.stdin.write(wire.to_json(self.job) + b"\n")
                    with suppress(BrokenPipeError):
                        process.stdin.close()
                    yield process
                finally:
                    process.kill()
        finally:
            process.wait()

    def _frames(self, process: subprocess.Popen[bytes]) -> Iterator[tuple[bytes, bytes]]:
        assert process.stdout is not None
        assert process.stderr is not None
        buffer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stderr, selectors.EVENT_READ)
            while selector.get_map():
                left = self.end - time.monotonic()
                if left <= 0:
                    raise self._too_long()
                for key, _ in selector.select(left):
                    data = os.read(key.fd, _CHUNK)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stderr:
                        self.tail = (self.tail + data)[-_TAIL:]
                    else:
                        buffer += data
                        yield from _checked(lambda b: list(wire.frames(b)), buffer)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(max(0.0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._too_long() from None

    def _too_long(self) -> CheckpointError:
        return CheckpointError(
            f"the scan took longer than {self.limits.seconds:g} s and was ended; raise --timeout or "
            "choose a smaller --budget",
            "BD006",
        )

    def _show(self, payload: bytes) -> None:
        done, total, text = _checked(wire.read_progress, payload)
        if self.progress is not None:
            self.progress(done, total, printable(text)[:200])

    def _died(self, code: int) -> CheckpointError:
        words = self.tail.decode("utf-8", "replace").strip().splitlines()
        last = f"; its last words: {shown(words[-1], 200)}" if words else ""
        if any(sign.encode() in self.tail for sign in wire.NO_MEMORY):
            return self._no_memory()
        if code >= 0:
            return CheckpointError(f"the process that scanned ended with code {code}{last}", "BD008")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if name == "SIGXCPU":
            return CheckpointError("the scan used more CPU time than --timeout allows", "BD006")
        if name == "SIGKILL":
            return CheckpointError(
                "the process that scanned was killed, as happens when memory runs out; lower --batch-size",
                "BD008",
            )
        return CheckpointError(f"the process that scanned died of {name}{last}", "BD008")

    def _no_memory(self) -> CheckpointError:
        limit = "all there is" if self.memory is None else f"{self.memory / GIB:.1f} GiB"
        return CheckpointError(
            f"the scan needed more memory than it may use ({limit}); lower --batch-size or raise "
            "--max-memory",
            "BD007",
        )


def _checked(read: Callable[[Any], Any], data: Any) -> Any:
    try:
        return read(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _invalid() from None


def _invalid() -> CheckpointError:
    return CheckpointError("the process that scanned sent no valid report", "BD008")
