"""``backdrift detect METHOD MODEL``: one detector, its finding."""

from __future__ import annotations

from typing import Annotated

import typer

from backdrift.cli import scan
from backdrift.cli._isolated import Classes, InProcess, Timeout
from backdrift.cli._options import BatchSize, Device, Model, Options, Quiet, Seed

NAME = "detect"


def main(
    method: Annotated[str, typer.Argument(help="A detector; see: backdrift list.")],
    model: Model,
    budget: Annotated[str, typer.Option("--budget", help="quick, standard or deep.")] = "standard",
    option: Options = None,
    classes: Classes = None,
    timeout: Timeout = None,
    in_process: InProcess = False,
    quiet: Quiet = False,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 256,
) -> int:
    """Run one detector and print its finding as JSON; exit code as scan."""
    return scan.main(
        [model],
        budget=budget,
        formats=["json"],
        detector=method,
        option=option,
        classes=classes,
        timeout=timeout,
        in_process=in_process,
        quiet=quiet,
        seed=seed,
        device=device,
        batch_size=batch_size,
    )
