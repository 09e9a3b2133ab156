"""``backdrift train``: a clean model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from backdrift.cli._options import OnBadImage, Quiet, Seed

NAME = "train"

Data = Annotated[
    str,
    typer.Option("--data", help="digits, shapes, photos, folder:PATH, hf:NAME or hf:PATH."),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps.")]
Rate = Annotated[float, typer.Option("--learning-rate", help="Peak learning rate.")]
Rows = Annotated[int, typer.Option("--rows", min=1, help="Rows per step.")]

Schedule = Annotated[
    Literal["vp", "ve"],
    typer.Option("--schedule", help="Variance preserving (DDPM) or exploding (NCSN), from scratch."),
]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="Parts that a step is taken in.")]
Average = Annotated[float, typer.Option("--ema", help="Decay of an average of the weights; 0: none.")]
Precision = Annotated[str, typer.Option("--mixed-precision", help="no, fp16 or bf16.")]
Offset = Annotated[
    float, typer.Option("--offset-noise", min=0, help="Standard deviation of offset noise; .15 for RGB.")
]
LogWith = Annotated[
    str | None,
    typer.Option(
        "--log-with", help="A tracker, tensorboard say, into OUTPUT.runs; OUTPUT.jsonl is always there."
    ),
]
Keep = Annotated[
    list[int] | None,
    typer.Option("--keep", min=1, help="Write the model of this step too, in OUTPUT.steps; repeatable."),
]
Grids = Annotated[bool, typer.Option("--grids", help="Samples at every checkpoint, in OUTPUT.samples.")]


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new checkpoint.")],
    data: Data = "digits",
    on_bad_image: OnBadImage = "refuse",
    base: Annotated[
        Path | None, typer.Option("--base", help="Checkpoint to go on from; else from scratch.")
    ] = None,
    size: Annotated[int, typer.Option("--size", help="Image size, from scratch.")] = 16,
    channels: Annotated[int, typer.Option("--channels", help="1 or 3, from scratch.")] = 1,
    width: Annotated[int, typer.Option("--width", help="Network width, from scratch.")] = 24,
    groups: Annotated[int, typer.Option("--groups", help="Of the normalisation; 1 for RGB.")] = 8,
    schedule: Schedule = "vp",
    steps: Steps = 3000,
    rows: Rows = 64,
    learning_rate: Rate = 1e-3,
    accumulate: Accumulate = 1,
    ema: Average = 0.0,
    mixed_precision: Precision = "no",
    offset_noise: Offset = 0.0,
    log_with: LogWith = None,
    grids: Grids = False,
    keep: Keep = None,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Train a clean model; run the same command again to resume."""
    from backdrift.bench.recipes import Recipe, make
    from backdrift.cli._progress import progress_bar

    recipe = Recipe(
        data=data,
        on_bad=on_bad_image,
        base=None if base is None else str(base),
        shape=(channels, size, size),
        width=width,
        groups=groups,
        schedule=schedule,
        steps=steps,
        batch_size=rows,
        learning_rate=learning_rate,
        accumulate=accumulate,
        ema=ema,
        mixed_precision=mixed_precision,  # type: ignore[arg-type]
        offset_noise=offset_noise,
        seed=seed,
        keep=tuple(keep or ()),
    )
    with progress_bar("train", quiet) as progress:
        cost = make(recipe, output, log_with=log_with, grids=grids, progress=progress)
    if not quiet and cost["main_process"]:
        loss = f", loss {cost['loss'][-1]:.4f}" if cost["loss"] else ""  # none: all steps were done
        typer.echo(
            f"wrote {output}: {cost['steps']} steps, {cost['seconds']:.0f} s, "
            f"{cost['images_per_second']:.0f} images/s{loss}"
        )
