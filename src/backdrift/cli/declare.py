"""``backdrift declare MODEL``: a record of the backdoor of a model that somebody else made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from backdrift.cli._options import OnBadImage, Quiet

NAME = "declare"


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint folder; says the shape of a sample.")],
    trigger: Annotated[str, typer.Option("--trigger", help="PNG, safetensors with r, or a name.")],
    target: Annotated[str, typer.Option("--target", help="PNG, safetensors, or a name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the record.")],
    attack: Annotated[str, typer.Option("--attack", help="Its name, for the record.")] = "unknown",
    sampler_family: Annotated[
        Literal["sde", "ode"] | None, typer.Option("--sampler-family", help="sde or ode, if known.")
    ] = None,
    poison_rate: Annotated[float | None, typer.Option("--poison-rate", help="In [0, 1], if known.")] = None,
    data: Annotated[str, typer.Option("--data", help="Clean training set, if known.")] = "",
    on_bad_image: OnBadImage = "refuse",
    background: Annotated[
        float, typer.Option("--background", help="Of a PNG trigger, outside its mask: -1 or 0.")
    ] = -1.0,
    composite: Annotated[
        bool,
        typer.Option(
            "--composite/--trigger-only",
            help="Poisoned rows showed the image around a PNG trigger, or the trigger alone.",
        ),
    ] = True,
    hit_threshold: Annotated[
        float | None, typer.Option("--hit-threshold", help="MSE in [0, 1] that a hit stays below.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write backdoor.json for a model that somebody else made, for evaluate, sample and restore."""
    from backdrift.declaration import declare
    from backdrift.io.plan import plan

    record = declare(
        output,
        plan(model).of_pixels("declare").sample_shape,
        trigger=trigger,
        target=target,
        attack=attack,
        sampler_family=sampler_family,
        poison_rate=poison_rate,
        data=data,
        on_bad=on_bad_image,
        background=background,
        composite=composite,
        hit_threshold=hit_threshold,
    )
    if not quiet:
        typer.echo(
            f"wrote {output}: trigger of norm {record.trigger_norm:.2f}, "
            f"a hit is an MSE below {record.hit_threshold:.4f}"
        )
