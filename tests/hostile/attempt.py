"""Builds hostile folders and lets the command line at them, as a user would."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backdrift.cli.main import call
from backdrift.io.errors import CheckpointError
from backdrift.io.load import load
from backdrift.io.plan import plan
from hostile.corpus import Case

DOCUMENTED = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Outcome:
    """What one command did.

    Args:
        seconds: wall clock.
        marked: a payload ran.
    """

    code: int
    out: str
    err: str
    seconds: float
    marked: bool

    def problems(self) -> list[str]:
        """What no command may do, whatever the folder holds."""
        found = []
        if self.marked:
            found.append("a payload ran")
        if self.code not in DOCUMENTED:
            found.append(f"exit code {self.code}")
        if "Traceback" in self.err + self.out:
            found.append("a traceback")
        if not all(line.isprintable() for line in self.err.splitlines()):
            found.append("control characters on the terminal")
        if self.code >= 2 and not self.out and self.err.count("\n") != 1:
            found.append(f"{self.err.count(chr(10))} lines on standard error")
        return found


@contextlib.contextmanager
def built(case: Case, good: Path, place: Path) -> Iterator[tuple[Path, Path]]:
    """The folder of a case, and where its marker would be."""
    marker = place / "marker"
    folder = Path(shutil.copytree(good, place / "model"))
    try:
        case.build(folder, marker)
        marker.with_suffix(".py").write_text(f"open({str(marker)!r}, 'w')\n")
        yield folder, marker
    finally:
        shutil.rmtree(folder)
        marker.unlink(missing_ok=True)


def attempt(marker: Path, *words: object) -> Outcome:
    """Runs one command line in this process."""
    out, err, begun = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = call([str(word) for word in words])
    return Outcome(code, out.getvalue(), err.getvalue(), time.monotonic() - begun, marker.exists())


def open_it(folder: Path) -> tuple[int, str, float]:
    """Plans and loads a folder: exit code, message, seconds. Any other exception goes through."""
    begun = time.monotonic()
    try:
        planned = plan(folder)
        load(planned, label=0 if planned.classes else None)
        code, message = 0, ""
    except CheckpointError as error:
        code, message = error.exit_code, str(error)
    return code, message, time.monotonic() - begun
