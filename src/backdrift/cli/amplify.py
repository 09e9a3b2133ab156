"""``backdrift amplify MODEL``: how far a known trigger can be reinforced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from backdrift.cli._options import (
    BatchSize,
    Device,
    Quiet,
    Record,
    RecordSampler,
    SamplerSteps,
    Seed,
    check_device,
    check_new,
    open_model,
)

NAME = "amplify"


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint folder of one's own.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the reinforced trigger.")],
    backdoor: Record = None,
    norm: Annotated[Literal["linf", "l2"], typer.Option("--norm", help="Of the ball.")] = "linf",
    radius: Annotated[float, typer.Option("--radius", help="Of the ball around the trigger.")] = 0.2,
    inside_mask: Annotated[
        bool, typer.Option("--inside-mask", help="Change the trigger only where its pattern is.")
    ] = False,
    variant: Annotated[
        Literal["attack", "purediffusion", "scale"], typer.Option("--variant", help="How it is searched.")
    ] = "attack",
    search: Annotated[int, typer.Option("--search", min=1, help="Gradient steps.")] = 40,
    samples: Annotated[int, typer.Option("--samples", "-n", min=20, help="Of each trigger.")] = 256,
    sampler: RecordSampler = None,
    steps: SamplerSteps = 100,
    quiet: Quiet = False,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 256,
) -> None:
    """Reinforce the trigger of a backdoor of one's own within a ball around it, and compare both."""
    from backdrift.amplify import Amplify, Ball, save_amplified
    from backdrift.cli._progress import progress_bar
    from backdrift.core.sampling import make_scheduler, usual_sampler
    from backdrift.groundtruth import load_backdoor
    from backdrift.metrics.draws import Plan
    from backdrift.metrics.measures import table

    check_device(device)
    check_new(output)
    planted = load_backdoor(backdoor or Path(model))
    ball = Ball(norm, radius, planted.trigger.mask if inside_mask else None)
    loaded = open_model(model, device, batch_size, pixels_for="amplify")
    usual = usual_sampler(planted.record.sampler_family, loaded.schedule)
    how = Plan(samples, sampler or usual, steps, seed)
    make_scheduler(how.sampler, loaded.schedule)
    method = Amplify(variant, steps=search)
    with progress_bar("amplify", quiet) as progress:
        found = method(loaded, planted, ball, seed=seed, progress=progress)
    with progress_bar("comparing", quiet) as progress:
        measures = found.compare(loaded, planted, how, progress)
    save_amplified(found, method, ball, loaded, planted, measures, how, output)
    if not quiet:
        typer.echo(table(measures))
        cost = f"{found.evaluations:,} evaluations, {found.seconds:.0f} s"
        typer.echo(f"wrote {output}: distance {found.linf:.3f} (L-infinity), {found.l2:.2f} (L2); {cost}")
