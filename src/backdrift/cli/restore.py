"""``backdrift restore MODEL``: damaged images restored, clean and triggered ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from backdrift.cli._options import (
    BatchSize,
    Device,
    Model,
    OnBadImage,
    Quiet,
    Seed,
    check_device,
    check_folder,
    open_model,
    write_text,
)

NAME = "restore"


def main(
    model: Model,
    task: Annotated[
        Literal["denoise", "inpaint-box", "inpaint-line"], typer.Option("--task", help="The damage.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG grid; the JSON lies beside it.")
    ] = Path("restored.png"),
    backdoor: Annotated[
        Path | None, typer.Option("--backdoor", help="backdoor.json: triggered images as well.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Last steps of the DDPM chain.")] = 400,
    data: Annotated[str, typer.Option("--data", help="Images to damage.")] = "digits",
    on_bad_image: OnBadImage = "refuse",
    count: Annotated[int, typer.Option("-n", min=20, help="How many images.")] = 64,
    lpips_weights: Annotated[
        Path | None, typer.Option("--lpips-weights", help="AlexNet weights: LPIPS as well.")
    ] = None,
    quiet: Quiet = False,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 256,
) -> None:
    """Restore damaged images, with and without the trigger, and score them."""
    from backdrift.cli._progress import progress_bar
    from backdrift.core.randomness import generator
    from backdrift.data import load_dataset
    from backdrift.groundtruth import load_backdoor
    from backdrift.io.evidence import save_images
    from backdrift.metrics.measures import table
    from backdrift.restoration import restore

    if output.suffix.lower() != ".png":
        raise ValueError(f"the grid is a PNG: name it so, not {output}")
    check_folder(output)
    check_device(device)
    planted = None if backdoor is None else load_backdoor(backdoor)
    lpips = None
    if lpips_weights is not None:
        from backdrift.metrics.lpips import Lpips

        lpips = Lpips(lpips_weights)
    loaded = open_model(model, device, batch_size, pixels_for="restore")
    known = load_dataset(data, loaded.sample_shape, on_bad=on_bad_image)
    images = known.images
    if count > len(images):
        raise ValueError(f"{data} has {len(images)} images, not {count}")
    import torch

    chosen = images[torch.randperm(len(images), generator=generator(seed, "restore"))[:count]]
    with progress_bar("restore", quiet) as progress:
        found, pictures = restore(
            loaded,
            chosen,
            task=task,
            steps=steps,
            seed=seed,
            planted=planted,
            lpips=lpips,
            data=known.name,
            progress=progress,
        )
    save_images(pictures.grid(), output, columns=len(pictures.rows[0]))
    write_text(found.model_dump_json(indent=2), output.with_suffix(".json"))
    if not quiet:
        last = f"{found.evaluations:,} evaluations, {found.seconds:.1f} s\nwrote {output}"
        write_text(f"{table(found.measures)}\n{last}", None)
