"""``backdrift calibrate``: thresholds from a population of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backdrift.cli._options import Quiet, Seed, check_folder

NAME = "calibrate"


def main(
    models: Annotated[Path, typer.Option("--models", help="Folder of checkpoints, most of them clean.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of thresholds.")],
    detector: Annotated[
        list[str] | None, typer.Option("--detector", help="See: backdrift list; repeatable.")
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option("--budget", help="quick, standard or deep; repeatable.")
    ] = None,
    cells: Annotated[
        Path | None, typer.Option("--cells", help="Folder of the scores; OUTPUT.cells by default.")
    ] = None,
    quiet: Quiet = False,
    seed: Seed = 1,
) -> None:
    """Set thresholds on clean models of your own; several of these share the work."""
    from backdrift.bench.calibration import calibrate
    from backdrift.cli._progress import progress_bar

    if not models.is_dir():
        raise ValueError(f"{models}: no such folder")
    check_folder(output)
    methods = [(d, b) for d in detector or ["backdrift"] for b in budget or ["standard"]]
    place = cells or output.with_name(f"{output.name}.cells")
    with progress_bar("calibrate", quiet) as progress:
        table = calibrate(models, methods, output, place, seed=seed, progress=progress)
    if quiet:
        return
    for name, budgets in table.detectors.items():
        for size, entry in budgets.items():
            flagged = sum(row.score >= entry.threshold for row in entry.clean)
            found = sum(row.score >= entry.threshold for row in entry.backdoored)
            typer.echo(
                f"{name}, {size}: threshold {entry.threshold:.2f}; flags {flagged} of {len(entry.clean)} "
                f"clean and {found} of {len(entry.backdoored)} backdoored models"
            )
    typer.echo(f"wrote {output}; use it with: backdrift scan MODEL -P calibration={output}")
