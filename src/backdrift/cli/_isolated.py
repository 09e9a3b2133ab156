"""Options of commands that scan a stranger's model, and the process in which they do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from backdrift.cli._progress import Progress
    from backdrift.core.results import Report
    from backdrift.io.weights import Bounds

GIB = 1 << 30
MOST_GIB, MOST_SECONDS = float(1 << 20), 365 * 24 * 3600.0

InProcess = Annotated[
    bool,
    typer.Option("--in-process", help="Scan without a process of its own: no limits, no protection."),
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Convert pickle weights, in a process of its own, and scan them."),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=1, max=MOST_SECONDS, help="Seconds for one model; a day without."),
]
MaxParams = Annotated[
    int | None, typer.Option("--max-params", min=1, help="Most parameters of a model; 2,000,000,000.")
]
MaxSize = Annotated[
    float | None,
    typer.Option("--max-size", min=0.001, max=MOST_GIB, help="Most GiB of weights of a model; 16."),
]
MaxMemory = Annotated[
    float | None,
    typer.Option("--max-memory", min=0.001, max=MOST_GIB, help="GiB for the scan; what there is without."),
]
Classes = Annotated[
    list[int] | None,
    typer.Option("--class", min=0, help="Of a class-conditional model; repeatable, all without."),
]


@dataclass(frozen=True)
class Isolation:
    """How a model is scanned, apart from the method: where, how long, how large."""

    in_process: bool = False
    allow_pickle: bool = False
    timeout: float | None = None
    max_params: int | None = None
    max_size: float | None = None
    max_memory: float | None = None
    classes: list[int] = field(default_factory=list)

    def check(self) -> None:
        """Fails before any work.

        Raises:
            ValueError: a limit that only a process of its own can keep, together with --in-process.
        """
        only = {"--timeout": self.timeout, "--max-memory": self.max_memory}
        only["--allow-pickle"] = self.allow_pickle or None
        for name, given in only.items():
            if self.in_process and given is not None:
                raise ValueError(f"{name} needs a process of its own: leave out --in-process")

    @property
    def bounds(self) -> Bounds:
        """The largest weights to accept."""
        from backdrift.io.weights import Bounds

        size = Bounds.size if self.max_size is None else int(self.max_size * GIB)
        return Bounds(self.max_params or Bounds.parameters, size)

    def scan(self, path: str, progress: Progress | None, **how: Any) -> Report:
        """Scans one model; ``how`` as for :func:`backdrift.scan`."""
        how = {**how, "classes": self.classes, "bounds": self.bounds, "progress": progress}
        if self.in_process:
            from backdrift.scanner import scan

            return scan(path, **how)
        from backdrift.isolation.limits import Limits
        from backdrift.isolation.parent import scan_isolated

        memory = None if self.max_memory is None else int(self.max_memory * GIB)
        limits = Limits(memory, Limits.seconds if self.timeout is None else self.timeout)
        return scan_isolated(path, **how, limits=limits, allow_pickle=self.allow_pickle)
