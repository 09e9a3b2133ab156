"""What ``backdrift doctor`` looks at. Heavy libraries are tried in child processes, never here."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata, resources
from typing import Any

SECONDS = 180
"""For a child to import what it tries; torch takes long on a cold disk."""

_REQUIREMENT = re.compile(r"([\w.-]+)[^;]*?>=\s*([\d.]+)?[^;]*(?:;.*extra == ['\"]([\w-]+)['\"])?")

_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__, "build": torch.version.cuda, "threads": torch.get_num_threads(),
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
}))
"""
_DIFFUSERS = "from diffusers import UNet2DModel; print('{}')"
_VISION = "import torch, torchvision; from torchvision.ops import nms; print('{}')"


class State(StrEnum):
    """How a thing stands."""

    OK = "ok"
    ABSENT = "absent"
    WARNING = "warning"
    BROKEN = "BROKEN"


@dataclass(frozen=True)
class Found:
    """One line of the doctor: what was looked at, how it stands, and what would help."""

    state: State
    what: str
    fix: str = ""


def in_child(code: str) -> tuple[dict[str, Any] | None, str]:
    """Runs Python in a process of its own.

    Returns:
        The JSON object that it printed last, or None; and the last line of its error.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{type(error).__name__}: no answer from a child process"
    lines = done.stdout.split("\n")
    try:
        answer = json.loads(next(line for line in reversed(lines) if line.strip()))
    except (StopIteration, ValueError):
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        return None, last[:200]
    return answer, ""


def _requirements() -> Iterator[tuple[str, str, str]]:
    """Name, lower bound (may be empty) and extra (empty: always needed) of what the package asks for."""
    for line in metadata.requires("backdrift") or []:
        found = _REQUIREMENT.match(line)
        if found is not None and found[3] not in ("dev", "docs"):
            yield found[1], found[2] or "", found[3] or ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def python() -> Iterator[Found]:
    """The interpreter."""
    yield Found(State.OK, f"Python {platform.python_version()} on {platform.platform()}")


def packages() -> Iterator[Found]:
    """Versions against their lower bounds, some of which are security fixes."""
    good = []
    for name, least, extra in _requirements():
        if extra:
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Found(State.BROKEN, f"{name} is not installed", f"pip install '{name}>={least}'")
            continue
        if _numbers(version) < _numbers(least):
            yield Found(State.BROKEN, f"{name} {version} is too old", f"pip install '{name}>={least}'")
        else:
            good.append(f"{name} {version}")
    yield Found(State.OK, ", ".join(good))


def torch() -> Iterator[Found]:
    """Whether torch works, and on what."""
    answer, error = in_child(_TORCH)
    if answer is None:
        yield Found(State.BROKEN, f"torch does not import: {error}", "install torch again")
        return
    build = f"build for CUDA {answer['build']}" if answer["build"] else "build for CPU"
    yield Found(State.OK, f"torch {answer['version']}, {build}")
    if answer["devices"]:
        yield Found(State.OK, f"GPU: {', '.join(answer['devices'])} (scan --device cuda)")
    elif answer["build"]:
        fix = "check nvidia-smi and the driver; or install the CPU build of torch, which is smaller"
        yield Found(
            State.WARNING, "torch sees no GPU though it is built for one; scans run on the CPU", fix
        )
    else:
        yield Found(State.OK, "no GPU in use; scans run on the CPU")
    yield _threads(answer["threads"])


def _threads(used: int) -> Found:
    affinity = getattr(os, "sched_getaffinity", None)
    there = len(affinity(0)) if affinity else os.cpu_count() or 1
    if used > there:
        fix = f"export OMP_NUM_THREADS={there}"
        return Found(State.WARNING, f"torch uses {used} threads on {there} cores", fix)
    return Found(State.OK, f"torch uses {used} of {there} cores")


def diffusers() -> Iterator[Found]:
    """The network class that every model is built from, and the library that can break it."""
    answer, error = in_child(_DIFFUSERS)
    fix = "see torchvision below; else install diffusers again"
    good = Found(State.OK, "diffusers imports")
    yield good if answer is not None else Found(State.BROKEN, f"diffusers does not import: {error}", fix)
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        yield Found(State.OK, "no torchvision; only the extras lpips and fid need it")
        return
    answer, error = in_child(_VISION)
    if answer is not None:
        yield Found(State.OK, f"torchvision {version} imports")
        return
    fix = "pip uninstall torchvision, or install the build that belongs to this torch"
    yield Found(State.BROKEN, f"torchvision {version} does not fit this torch: {error}", fix)


def extras() -> Iterator[Found]:
    """Optional parts."""
    for name, _, extra in _requirements():
        if not extra:
            continue
        try:
            yield Found(State.OK, f"extra {extra}: {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Found(State.ABSENT, f"extra {extra}: {name}", f"pip install 'backdrift[{extra}]'")


def limits() -> Iterator[Found]:
    """What the platform enforces on the process that scans."""
    from backdrift.io.errors import CheckpointError
    from backdrift.isolation.parent import probe

    try:
        rows = probe()
    except (CheckpointError, OSError) as error:
        fix = "scan with --in-process, in a container that you can throw away"
        yield Found(State.BROKEN, f"scans get no process of their own: {error}", fix)
        return
    for row in rows:
        if row.held:
            yield Found(State.OK, f"limit on {row.name}: {row.detail}")
        else:
            yield Found(State.ABSENT, f"limit on {row.name}: {row.detail}", "scan strangers in a container")


def files() -> Iterator[Found]:
    """The shipped models and the folder for temporary files."""
    models = resources.files("backdrift").joinpath("models")
    if models.joinpath("clean", "model_index.json").is_file():
        yield Found(State.OK, "shipped models are there (backdrift demo)")
    else:
        yield Found(State.WARNING, "the shipped models are missing", "install backdrift again")
    try:
        with tempfile.TemporaryFile():
            yield Found(State.OK, f"temporary files: {tempfile.gettempdir()}")
    except OSError as error:
        fix = "export TMPDIR=FOLDER, one that can be written to"
        yield Found(State.WARNING, f"no temporary files: {error.strerror}", fix)


CHECKS: tuple[Callable[[], Iterator[Found]], ...] = (
    python,
    packages,
    torch,
    diffusers,
    extras,
    limits,
    files,
)
