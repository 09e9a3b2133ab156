"""``backdrift repair METHOD MODEL``: makes a backdoored model harmless, as far as a scan has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backdrift.cli._options import (
    BatchSize,
    Device,
    Evidence,
    Model,
    OnBadImage,
    Options,
    Quiet,
    Seed,
    check_device,
    check_new,
    settings,
)

NAME = "repair"


def main(
    method: Annotated[str, typer.Argument(help="A repair; see: backdrift list.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the repaired checkpoint.")],
    evidence: Evidence = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Clean data set, for methods that use one.")
    ] = None,
    on_bad_image: OnBadImage = "refuse",
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="How many of its images, at random; all without.")
    ] = None,
    option: Options = None,
    quiet: Quiet = False,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 256,
) -> None:
    """Repair a model by what a scan found in it; the new checkpoint says so itself.

    Exit code 1 when the repair checks itself and the trigger still fires or the model was harmed.
    """
    from backdrift.cli._progress import progress_bar
    from backdrift.core.registry import build
    from backdrift.data import load_dataset
    from backdrift.io.plan import plan
    from backdrift.repair._checkpoint import repair_checkpoint

    repair = build("repair", method, settings(option))
    check_device(device)
    check_new(output)
    if images is not None and data is None:
        raise ValueError("--images counts those of a data set: give --data")
    shape = plan(model).of_pixels("repair").sample_shape
    known = None if data is None else load_dataset(data, shape, on_bad=on_bad_image)
    clean = None if known is None else known.some(images, seed)
    with progress_bar(method, quiet) as progress:
        record = repair_checkpoint(
            repair,
            model,
            output,
            evidence=evidence,
            data=clean,
            seed=seed,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    if not quiet:
        lines = [f"wrote {output}: {record.stopped}"]
        lines += [f"  {name}: {value:.4g}" for name, value in record.measured.items()]
        lines.append(f"{record.evaluations:,} evaluations, {record.seconds:.0f} s; scan it again")
        typer.echo("\n".join(lines))
    if record.held is False:
        typer.echo(f"backdrift: {output} is not repaired: {record.stopped}", err=True)
        raise typer.Exit(1)
