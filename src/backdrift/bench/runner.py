"""Cells and the loop that works through them: interrupted, killed or shared, nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from backdrift.core.environment import environment
from backdrift.core.results import Environment
from backdrift.io.files import replaced_file

Progress = Callable[[int, int, str], None]
Status = Literal["done", "failed"]

WAIT = 1.0
"""Seconds between two looks at cells that another runner holds."""


class Outcome(BaseModel):
    """What a cell found.

    Args:
        resolved: the configuration with every default written out.
        value: the result, JSON-able.
        evaluations: forward passes of one sample; a backward pass counts as two.
    """

    model_config = ConfigDict(extra="forbid")

    resolved: dict[str, Any]
    value: dict[str, Any]
    evaluations: int


class Result(BaseModel):
    """The JSON of a cell.

    Args:
        address: sha256 of everything that the value depends on.
        error: of a cell that failed; its ``value`` is empty.
        given: the configuration as the suite has it; ``resolved`` with every default.
        commit: of the package's sources, None where they are not in a repository.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: str = "1.0"
    version: str
    name: str
    address: str
    status: Status
    error: str | None = None
    given: dict[str, Any]
    resolved: dict[str, Any] = {}
    value: dict[str, Any] = {}
    seed: int
    started: str
    seconds: float
    evaluations: int = 0
    environment: Environment
    cores: int
    commit: str | None


@dataclass(frozen=True)
class Cell:
    """One piece of work whose result is one JSON.

    Args:
        name: for people.
        path: of the JSON.
        key: everything that the value depends on, JSON-able; :attr:`address` is its hash.
        given: the configuration as the suite has it.
        work: does it; ``progress`` is handed on.
        needs: cells that must be done before.
        products: what it makes beside the result; made again when it is gone and something needs it.
        threads: of torch while it runs.
        kind: ``model``, or that of a task.
        device: ``cuda`` must be there, ``any`` is a GPU where there is one.
    """

    name: str
    path: Path
    key: Any
    given: dict[str, Any]
    work: Callable[[Progress | None], Outcome]
    needs: tuple[Cell, ...] = ()
    products: tuple[Path, ...] = ()
    seed: int = 0
    threads: int = 1
    kind: str = ""
    device: Literal["cpu", "cuda", "any"] = "cpu"

    @property
    def address(self) -> str:
        """64 hexadecimal digits."""
        return address_of({"key": self.key, "seed": self.seed, "threads": self.threads})

    def result(self) -> Result | None:
        """What is there.

        Raises:
            ValueError: a result of another content lies at the path.
        """
        if not self.path.exists():
            return None
        found = Result.model_validate_json(self.path.read_text(encoding="utf-8"))
        if found.address != self.address:
            raise ValueError(
                f"{self.path} holds the result of other settings: remove it, or name another folder"
            )
        return found


def address_of(key: Any) -> str:
    """sha256 of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def run_cells(
    cells: Sequence[Cell], *, retry: bool = False, progress: Progress | None = None
) -> dict[str, Status]:
    """Works through the cells in order, leaving out those that are there or that another runner holds.

    A cell that fails is a result with its error, cells that need it fail with it, the others go on. An
    interrupt leaves no result of the cell it struck. What is gone though its result is there (results
    travel, models stay behind) is made again if a cell without a result needs it. Two runners on one
    folder share the work: each cell is held by a lock that the operating system lets go of when its
    process dies.

    Args:
        retry: do failed cells again.
        progress: gets the steps of the cell at hand, its name in front of the text.

    Returns:
        The status of every cell by name, when all of them have a result.
    """
    again = to_do_again(cells, retry)
    while True:
        waiting, moved = 0, False
        for cell in cells:
            if finished(cell, again):
                continue
            if ready(cell, again) and attempt(cell, again=cell.path in again, progress=progress):
                again.discard(cell.path)
                moved = True
            else:
                waiting += 1
        if not waiting:
            break
        if not moved:
            time.sleep(WAIT)
    return statuses(cells)


def to_do_again(cells: Sequence[Cell], retry: bool) -> set[Path]:
    """Results that are there, of cells to do all the same.

    Those that failed, with ``retry``, and those whose products are gone where a cell that is to be done
    needs them. Where all cells are models, those that no other is made from are themselves wanted.
    Raises ``ValueError`` for a result of another content.
    """
    before = {cell.path: cell.result() for cell in cells}
    again = {path for path, result in before.items() if retry and result and result.status == "failed"}
    todo = [cell for cell in cells if not finished(cell, again)]
    if all(cell.kind == "model" for cell in cells):
        means = {needed.path for cell in cells for needed in cell.needs}
        todo += [cell for cell in cells if cell.path not in means and _gone(cell)]
        again |= {cell.path for cell in todo if cell.path.exists()}
    while todo:
        gone = [needed for needed in todo.pop().needs if needed.path not in again and _gone(needed)]
        again |= {needed.path for needed in gone}
        todo += gone
    return again


def finished(cell: Cell, again: Set[Path]) -> bool:
    """Whether there is a result, and not one to do again."""
    return cell.path not in again and cell.path.exists()


def ready(cell: Cell, again: Set[Path]) -> bool:
    """Whether everything that it needs is finished."""
    return all(finished(needed, again) for needed in cell.needs)


def statuses(cells: Sequence[Cell]) -> dict[str, Status]:
    """Of every cell with a result, by name."""
    found = {cell.name: cell.result() for cell in cells}
    return {name: result.status for name, result in found.items() if result is not None}


def attempt(cell: Cell, *, again: bool = False, progress: Progress | None = None) -> bool:
    """Runs a cell unless it has a result or another runner holds it.

    Args:
        again: also when its result is a failure, or its products are gone.

    Returns:
        Whether it has a result now; False where another runner holds it.
    """
    locks = cell.path.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(locks / f"{cell.path.stem}.lock", timeout=0):
            if _failed(cell) or _gone(cell) if again else not cell.path.exists():
                result = _run(cell, _named(cell.name, progress))
                with replaced_file(cell.path) as fresh:
                    fresh.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except Timeout:
        return False
    return True


def _named(name: str, progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, text: progress(done, total, f"{name}, {text}")


def _run(cell: Cell, progress: Progress | None) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(cell.threads)
    begun, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    device = "cuda" if cell.device != "cpu" and torch.cuda.is_available() else "cpu"
    about: dict[str, Any] = {
        "version": metadata.version("backdrift"),
        "name": cell.name,
        "address": cell.address,
        "given": cell.given,
        "seed": cell.seed,
        "started": started,
        "environment": environment(device),
        "cores": os.cpu_count() or 0,
        "commit": commit(),
    }
    try:
        broken = [needed.name for needed in cell.needs if _failed(needed)]
        if broken:
            raise RuntimeError(f"needs {', '.join(broken)}, which failed")
        if cell.device == "cuda" and device != "cuda":
            raise RuntimeError("there is no GPU here")
        outcome = cell.work(progress)
        found: dict[str, Any] = {"status": "done", **outcome.model_dump()}
    except Exception as error:
        found = {"status": "failed", "error": _text(error)}
    finally:
        torch.set_num_threads(threads)
    return Result(**about, **found, seconds=time.monotonic() - begun)


def _failed(cell: Cell) -> bool:
    result = cell.result()
    return result is None or result.status == "failed"


def _gone(cell: Cell) -> bool:
    """Whether it was done, and what it made is not there."""
    return not all(path.exists() for path in cell.products) and not _failed(cell)


def _text(error: Exception) -> str:
    """Type, message and the last place, without a path of the machine."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


@cache
def commit() -> str | None:
    """The commit of the package's sources, ``+changes`` behind it when files differ; None outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
