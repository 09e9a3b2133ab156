"""One process that scans, from its start to its end, and the frames that it sends."""

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
from pathlib import Path
from typing import Any

from backdrift.io.errors import CheckpointError, printable, shown
from backdrift.isolation import wire
from backdrift.isolation.limits import GIB, Limits, default_memory, environment, import_path

Progress = Callable[[int, int, str], None]

_BOOT = (
    "import json, signal, sys; signal.pthread_sigmask(signal.SIG_SETMASK, ()); "
    "job = json.loads(sys.stdin.buffer.readline()); sys.path[:] = job['sys_path']; "
    "from backdrift.isolation.child import main; main(job)"
)
_ASKED_TO_END = (signal.SIGINT, signal.SIGTERM)
_CHUNK = 1 << 20
_TAIL = 4096


class Run:
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
        self.tail, self.partial = bytearray(), b""

    def answers(self, *descriptors: int) -> list[tuple[bytes, bytes]]:
        """Every frame but progress and partial reports, in order; the last is ``DONE``.

        The last partial report stays in ``partial``, also when this raises.
        """
        found: list[tuple[bytes, bytes]] = []
        size = 0
        with (
            tempfile.TemporaryDirectory(prefix="backdrift-") as place,
            self._started(place, descriptors) as process,
        ):
            for kind, payload in self._frames(process):
                if kind == wire.PROGRESS:
                    self._show(payload)
                elif kind == wire.PARTIAL:
                    self.partial = payload
                elif kind == wire.FAILURE:
                    raise checked(self._failure, payload)
                else:
                    found.append((kind, payload))
                    size += len(payload)
                    if size > wire.MOST_BYTES or len(found) > wire.MOST_FRAMES:
                        raise invalid()
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
        # Ctrl-C inside of Popen would leave a child that nobody holds; it waits until there is one to kill.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED_TO_END)
        try:
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
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise
        try:
            with process:
                try:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
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
                        yield from checked(lambda b: list(wire.frames(b)), buffer)

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
        done, total, text = checked(wire.read_progress, payload)
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


def checked(read: Callable[[Any], Any], data: Any) -> Any:
    """What ``read`` makes of ``data`` from the other process.

    Raises:
        CheckpointError: it is no answer.
    """
    try:
        return read(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise invalid() from None


def invalid() -> CheckpointError:
    """What that process said is no answer."""
    return CheckpointError("the process that scanned sent no valid report", "BD008")
