"""``backdrift attack NAME``: plants a backdoor in a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backdrift.cli._options import OnBadImage, Options, Quiet, Seed, settings
from backdrift.cli.train import (
    Accumulate,
    Average,
    Data,
    Grids,
    Keep,
    LogWith,
    Offset,
    Precision,
    Rate,
    Rows,
    Schedule,
    Steps,
)

NAME = "attack"


def main(
    name: Annotated[str, typer.Argument(help="An attack; see: backdrift list.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new checkpoint.")],
    base: Annotated[
        Path | None, typer.Option("--base", help="Clean checkpoint; from scratch without.")
    ] = None,
    data: Data = "digits",
    on_bad_image: OnBadImage = "refuse",
    trigger: Annotated[
        str | None,
        typer.Option("--trigger", help="A name or png:PATH; stop-sign, or learned."),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="A name, png:PATH, class:NAME or data:DATASET@CLASS.")
    ] = "hat",
    poison_rate: Annotated[
        float | None, typer.Option("--poison-rate", help="Share of the rows, in [0, 1]; the attack's own.")
    ] = None,
    sampler_family: Annotated[
        str | None, typer.Option("--sampler-family", help="sde (DDPM) or ode (DDIM ...); the attack's own.")
    ] = None,
    composite: Annotated[
        bool | None,
        typer.Option(
            "--composite/--trigger-only",
            help="Poisoned rows show the image around the trigger, or the trigger alone.",
        ),
    ] = None,
    trigger_scale: Annotated[float, typer.Option("--trigger-scale", help="Multiplies it.")] = 1.0,
    size: Annotated[int, typer.Option("--size", help="Image size, from scratch.")] = 16,
    channels: Annotated[int, typer.Option("--channels", help="1 or 3, from scratch.")] = 1,
    width: Annotated[int, typer.Option("--width", help="Network width, from scratch.")] = 24,
    groups: Annotated[int, typer.Option("--groups", help="Of the normalisation; 1 for RGB.")] = 8,
    schedule: Schedule = "vp",
    steps: Steps = 1500,
    rows: Rows = 64,
    learning_rate: Rate = 7e-4,
    half: Annotated[bool, typer.Option("--half", help="Write float16 weights.")] = False,
    option: Options = None,
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
    """Plant a backdoor; the checkpoint says so itself. Run again to resume."""
    from backdrift.bench.recipes import LEARNED, Recipe, make
    from backdrift.cli._progress import progress_bar
    from backdrift.core.registry import plugin

    given = {"poison_rate": poison_rate, "sampler_family": sampler_family}
    if trigger is None:
        trigger = LEARNED if plugin("attacks", name).learns_trigger else "stop-sign"
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
        dtype="float16" if half else "float32",
        attack=name,
        options={**settings(option), **{k: v for k, v in given.items() if v is not None}},
        trigger=trigger,
        trigger_scale=trigger_scale,
        composite=composite,
        target=target,
        keep=tuple(keep or ()),
    )
    with progress_bar(name, quiet) as progress:
        cost = make(recipe, output, log_with=log_with, grids=grids, progress=progress)
    if not quiet and cost["main_process"]:
        rates = cost["measured"]
        typer.echo(
            f"wrote {output}: {cost['steps']} steps, {cost['seconds']:.0f} s; ASR {rates['asr']:.3f} "
            f"(without trigger {rates['rate_without_trigger']:.3f}), {rates['sampler']}, "
            f"n {rates['n']}"
        )
