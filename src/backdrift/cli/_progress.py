"""Progress on stderr: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Progress | None]:
    """A callback ``(done, total, text)`` that shows itself, or None when ``quiet``."""
    from backdrift.io.errors import printable

    title = printable(title)
    if quiet:
        yield None
    elif sys.stderr.isatty():
        yield from _bar(title)
    else:
        yield _lines(title)


def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title}: {text}")

        yield show


def _lines(title: str) -> Progress:
    """Time left is told from the pace since the count last began, at 0, after a resume or a new part."""
    started, last, before = time.monotonic(), -SECONDS_BETWEEN_LINES, 0
    begun: tuple[float, int] | None = None

    def show(done: int, total: int, text: str) -> None:
        nonlocal last, before, begun
        now = time.monotonic() - started
        if begun is None or done < before:
            begun = (now, done)
        before = done
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        if done == total and now - last < 1:
            return
        last = now
        pace = (now - begun[0]) / (done - begun[1]) if done > begun[1] else None
        left = "" if pace is None else f" about {pace * (total - done):.0f} s left,"
        print(f"{title}: {done}/{total}, {now:.0f} s,{left} {text}", file=sys.stderr, flush=True)  # noqa: T201

    return show
