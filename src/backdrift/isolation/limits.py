"""What the process that scans may use, and what of that the platform enforces. Torch-free."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdrift.core.static import Limit
from backdrift.isolation import seccomp

GIB = 1 << 30
_RESERVED = 4 * GIB
_YEAR = 365 * 24 * 3600.0
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_REFUSED_EVENTS = frozenset(
    {"ftplib.connect", "http.client.connect", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn",
     "os.system", "pickle.find_class", "pty.spawn", "smtplib.connect", "socket.bind", "socket.connect",
     "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "urllib.Request", "webbrowser.open"}
)  # fmt: skip
_SECRETS = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE|COOKIE", re.IGNORECASE)
_SET = {
    "MALLOC_ARENA_MAX": "4",  # each reserves address space, and there would be eight for every core
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DIFFUSERS_OFFLINE": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "DO_NOT_TRACK": "1",
    "USE_HUB_KERNELS": "0",
}


@dataclass(frozen=True)
class Limits:
    """What a scan may use.

    Args:
        memory: bytes of address space; None is what the machine or its container has, and 4 GiB that
            libraries reserve and do not use.
        seconds: wall clock for one model, at most a year.

    Raises:
        ValueError: no such limits.
    """

    memory: int | None = None
    seconds: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= _YEAR or (self.memory is not None and self.memory <= 0):
            raise ValueError(
                f"no limits: {self.memory} bytes of memory, {self.seconds:g} s; a year at most"
            )


def default_memory() -> int | None:
    """Bytes of address space for a scan, or None when nothing says how much memory there is."""
    found = []
    for path in _CGROUP_LIMITS:
        try:
            with open(path, encoding="ascii") as file:
                found.append(int(file.read()))
        except (OSError, ValueError):
            continue
    with suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    there = min((value for value in found if value > 0), default=None)
    return None if there is None else there + _RESERVED


def environment() -> dict[str, str]:
    """The environment of the child: offline, without secrets and without Python's own settings."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PYTHON") and not _SECRETS.search(key)
    }
    return kept | _SET


def import_path(model: str) -> list[str]:
    """``sys.path`` for the child: absolute, without the working folder and without the model's.

    What belongs to this Python stays, even when it lies below the model: ``scan .`` must work beside
    a virtual environment. A model below this Python gains nothing by that.
    """
    home = str(Path(__file__).resolve().parents[2])
    root, here = os.path.realpath(model), os.getcwd()
    libraries = [*map(os.path.realpath, sysconfig.get_paths().values()), home]
    ours = [library for library in libraries if not _below(root, library)]
    kept = []
    for entry in sys.path:
        place = os.path.realpath(entry)
        if any(_below(place, library) for library in ours) or (place != here and not _below(place, root)):
            kept.append(os.path.abspath(entry))
    return kept if home in map(os.path.realpath, kept) else [*kept, home]


def _below(place: str, folder: str) -> bool:
    return place == folder or place.startswith(folder + os.sep)


def apply(memory: int | None, seconds: float, device: str, output: int = 0) -> list[Limit]:
    """Limits this process for good and says what held.

    Args:
        memory: bytes of address space, or None for no limit.
        seconds: wall clock, which the parent keeps; CPU time is limited to that on every core.
        device: address space and descriptors are limited on ``cpu`` alone: drivers of other devices
            reserve and open far more than they use.
        output: the most bytes that it may write to a file whose descriptor it was given.
    """
    on_cpu = device == "cpu"
    why = seccomp.install() if on_cpu else f"the driver of {device} needs what the filter refuses"
    sys.addaudithook(_refuse)
    cpu = int(seconds * (os.cpu_count() or 1)) + 60
    rows = [
        ("wall clock", None, f"{seconds:g} s, by the parent process"),
        ("CPU time", *_resource("RLIMIT_CPU", cpu, f"{cpu} s")),
        ("memory", *_memory(memory, on_cpu)),
        ("network", why, "sockets are refused by the kernel"),
        ("programs", why, "new processes and programs are refused by the kernel"),
        ("files", why, "writing, renaming and removing are refused by the kernel"),
        ("pickle", None, "the unpickler is refused by an audit hook"),
    ]
    _resource("RLIMIT_FSIZE", output, "")
    _resource("RLIMIT_CORE", 0, "")
    hooked = ("network", "programs")
    return [
        Limit(name=name, held=True, detail=detail)
        if reason is None
        else Limit(name=name, held=False, detail=reason + _WEAKER * (name in hooked))
        for name, reason, detail in rows
    ]


_WEAKER = "; refused inside Python only"


def _memory(memory: int | None, on_cpu: bool) -> tuple[str | None, str]:
    if not on_cpu:
        return "not limited: drivers reserve far more address space than they use", ""
    if sys.platform != "linux":
        return "not limited: of the platforms, only Linux keeps a limit on address space", ""
    if memory is None:
        return "not limited: this platform does not say how much there is", ""
    return _resource("RLIMIT_AS", memory, f"{memory / GIB:.1f} GiB of address space")


def _resource(name: str, value: int, detail: str) -> tuple[str | None, str]:
    """Lowers one resource limit; why it did not work (or None), and what then holds."""
    try:
        import resource

        which = getattr(resource, name)
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
    except (ImportError, AttributeError, OSError, ValueError) as error:
        return f"{name} is not enforced here: {error}", detail
    return None, detail


def _refuse(event: str, arguments: Any) -> None:
    if event in _REFUSED_EVENTS:
        raise PermissionError(f"{event} is refused in the process that scans")
