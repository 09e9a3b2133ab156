"""Cells on Ray: the cores of this machine at once, or those of a cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from backdrift.bench.runner import (
    WAIT,
    Cell,
    Progress,
    Status,
    attempt,
    finished,
    ready,
    statuses,
    to_do_again,
)

DEATHS = 3
"""Of the worker or the node of one cell, after which that cell has failed."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # it would tell of a dead worker on standard output
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it, a warning
}
STARTS = 3
"""Times that a Ray of our own is started, before the run ends."""
_STORE = 80 << 20
"""Bytes of shared memory for a Ray of our own: results go through files."""


def run_on_ray(
    cells: Sequence[Cell],
    *,
    retry: bool = False,
    address: str | None = None,
    gpus: float = 1.0,
    progress: Progress | None = None,
) -> dict[str, Status]:
    """Works through the cells as :func:`backdrift.bench.runner.run_cells` does, many at a time.

    A cell is one task of as many CPUs as it has threads. Its worker writes the result, under the same
    lock and by the same rename, so runners of both kinds may share a folder and find the same. When a
    worker or its node dies the cell is begun again, and has failed after ``DEATHS`` times. Every node must
    have this version of backdrift, and see the folder of the results and the working folder at the
    same paths.

    Args:
        retry: do failed cells again.
        address: of a cluster, ``auto`` or ``HOST:PORT``; without one Ray is started on this machine, and
            stopped at the end.
        gpus: share of a GPU, in (0, 1], for each cell that can use one. Models are made without where
            no node has one.
        progress: gets the number of finished cells.

    Returns:
        The status of every cell by name, when all of them have a result.

    Raises:
        ValueError: the extra is not installed, or the cluster cannot run these cells.
    """
    again, deaths = to_do_again(cells, retry), Counter[Path]()
    with _session(address) as ray:
        cluster = _Cluster.checked(ray, cells, gpus)
        running: dict[Any, Cell] = {}
        try:
            while todo := [cell for cell in cells if not finished(cell, again)]:
                if progress is not None:
                    progress(len(cells) - len(todo), len(cells), f"next, {todo[0].name}")
                taken = {cell.path for cell in running.values()}
                for cell in todo:
                    if cell.path not in taken and ready(cell, again):
                        running[cluster.start(cell, cell.path in again)] = cell
                for task in ray.wait(list(running), timeout=WAIT)[0]:
                    cell = running.pop(task)
                    if _ended(ray, task, cell, deaths, cell.path in again):
                        again.discard(cell.path)
        finally:
            for task in running:
                ray.cancel(task, force=True)
    return statuses(cells)


@contextmanager
def _session(address: str | None) -> Iterator[Any]:
    """Ray, quiet; one that is there already is used, and stays."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)  # some are read when it is imported
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise ValueError('the executor ray needs an extra: pip install "backdrift[ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    how: dict[str, Any] = {"address": address}
    if address is None:
        how = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE}
    before = signal.getsignal(signal.SIGTERM)
    for number in range(STARTS):
        try:
            ray.init(**how, log_to_driver=False, logging_level=logging.ERROR)
            break
        except Exception as error:  # on a busy machine it gives up starting after 30 s
            ray.shutdown()
            if address is not None or number == STARTS - 1:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise ValueError(f"cannot start or reach Ray at {how['address']}: {reason}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own ends the process with exit code 1
    try:
        yield ray
    except SystemError as error:  # Ray's calls give it in place of what a handler of a signal raises
        raise error.__cause__ or error from None
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Cluster:
    """Where cells are started."""

    task: Any
    gpus: float

    @classmethod
    def checked(cls, ray: Any, cells: Sequence[Cell], gpus: float) -> _Cluster:
        """Raises ``ValueError`` for a node that cannot run cells, or what a cell needs and no node has."""
        if not 0 < gpus <= 1:
            raise ValueError(f"the share of a GPU lies in (0, 1], not at {gpus}")
        nodes = [node for node in ray.nodes() if node["Alive"]]
        places = sorted({str(cell.path.parent.absolute()) for cell in cells})
        for place in places:
            Path(place).mkdir(parents=True, exist_ok=True)
        for node in nodes:
            if problem := _problem(ray, node, [os.getcwd(), *places]):
                raise ValueError(f"Ray node {node['NodeManagerAddress']}: {problem}")
        most = {kind: max(n["Resources"].get(kind, 0.0) for n in nodes) for kind in ("CPU", "GPU")}
        for cell in cells:
            if cell.threads > most["CPU"]:
                raise ValueError(
                    f"{cell.name} needs {cell.threads} CPUs; no node has more than {most['CPU']:.0f}"
                )
            if cell.device == "cuda" and not most["GPU"]:
                raise ValueError(f"{cell.name} needs a GPU; no node has one")
        return cls(ray.remote(max_retries=0)(_work), gpus if most["GPU"] else 0.0)

    def start(self, cell: Cell, again: bool) -> Any:
        """The task of a cell."""
        gpus = self.gpus if cell.device != "cpu" else 0.0
        task = self.task.options(name=cell.name, num_cpus=cell.threads, num_gpus=gpus)
        return task.remote(cell, again, os.getcwd())


def _problem(ray: Any, node: dict[str, Any], folders: list[str]) -> str:
    """Why a node cannot run cells; empty if it can."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    try:
        task = look.options(scheduling_strategy=strategy).remote(metadata.version("backdrift"), folders)
        return str(ray.get(task))
    except ray.exceptions.RayError as error:
        return f"no task runs there; is backdrift installed? ({type(error).__name__})"


def _look(version: str, folders: list[str]) -> str:
    if metadata.version("backdrift") != version:
        return f"it has backdrift {metadata.version('backdrift')}, not {version}"
    missing = [folder for folder in folders if not Path(folder).is_dir()]
    return f"it does not see {missing[0]}: nodes must share their files" if missing else ""


def _work(cell: Cell, again: bool, folder: str) -> bool:
    """The task. A cell that another runner holds keeps its place a moment, or would be asked at once."""
    os.chdir(folder)
    done = attempt(cell, again=again)
    if not done:
        time.sleep(WAIT)
    return done


def _ended(ray: Any, task: Any, cell: Cell, deaths: Counter[Path], again: bool) -> bool:
    """Whether a cell has a result after its task; what the task itself raises ends the run."""
    try:
        return bool(ray.get(task))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as error:
        deaths[cell.path] += 1
        if deaths[cell.path] < DEATHS:
            return False
        reason = f"its worker died {DEATHS} times ({type(error).__name__})"
        return attempt(replace(cell, work=partial(_fail, reason)), again=again)


def _fail(reason: str, progress: Progress | None) -> NoReturn:
    raise RuntimeError(reason)
