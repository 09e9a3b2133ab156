"""``backdrift sample MODEL``: a grid of samples, clean or triggered, and the way to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backdrift.cli._options import (
    BatchSize,
    Countermeasure,
    Device,
    Evidence,
    Model,
    Options,
    Quiet,
    SamplerSteps,
    Seed,
    check_device,
    check_folder,
    countermeasure,
    open_model,
)

NAME = "sample"

IN_STRIP = 8


def main(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG of the grid.")],
    backdoor: Annotated[
        Path | None, typer.Option("--backdoor", help="backdoor.json: adds its trigger to the noise.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="ddpm, ddim, ...; the stock pipeline's own without.")
    ] = None,
    steps: SamplerSteps = 100,
    count: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 16,
    strip: Annotated[
        Path | None,
        typer.Option("--latents", help="PNG of the first samples on their way, one a row."),
    ] = None,
    repair: Countermeasure = None,
    evidence: Evidence = None,
    option: Options = None,
    quiet: Quiet = False,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 256,
) -> None:
    """Draw samples; the same seed starts from the same noise with and without a trigger."""
    from backdrift.core.sampling import make_scheduler, usual_sampler
    from backdrift.groundtruth import load_backdoor
    from backdrift.io.evidence import save_images
    from backdrift.metrics.draws import draw, latents

    for path in (output, strip):
        if path is not None:
            check_folder(path)
    check_device(device)
    injection = None if backdoor is None else load_backdoor(backdoor).injection
    loaded = open_model(model, device, batch_size)
    sampler = sampler or usual_sampler(None, loaded.schedule)
    make_scheduler(sampler, loaded.schedule)
    if injection is not None and tuple(injection.shift.shape) != tuple(loaded.sample_shape):
        shapes = f"{tuple(injection.shift.shape)}, not {tuple(loaded.sample_shape)}"
        raise ValueError(f"the trigger has shape {shapes}")
    hook = countermeasure(repair, option, evidence, loaded, seed)
    drawn = draw(loaded, injection, sampler=sampler, steps=steps, n=count, seed=seed, hook=hook)
    images = loaded.decode(drawn).cpu()
    save_images(images, output)
    against = "" if hook is None else f", {hook.name}"
    lines = [f"wrote {output}: {count} samples, {sampler}, {steps} steps, seed {seed}{against}"]
    if strip is not None:
        few = min(count, IN_STRIP)
        rows, times = latents(loaded, injection, sampler=sampler, steps=steps, n=few, seed=seed, hook=hook)
        frames = loaded.decode(rows.flatten(0, 1).to(loaded.device)).cpu()
        save_images(frames, strip, columns=rows.shape[1])
        lines.append(f"wrote {strip}: after the steps at t = {', '.join(map(str, times))}")
    if not quiet:
        typer.echo("\n".join(lines))
