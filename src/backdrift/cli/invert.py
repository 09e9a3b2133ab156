"""``backdrift invert METHOD MODEL``: what one inversion finds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from backdrift.cli._options import (
    BatchSize,
    Device,
    Model,
    Options,
    Quiet,
    Seed,
    check_device,
    check_new,
    open_model,
    settings,
    write_text,
)

NAME = "invert"


def main(
    method: Annotated[str, typer.Argument(help="An inversion; see: backdrift list.")],
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the candidates.")
    ] = None,
    option: Options = None,
    quiet: Quiet = False,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 256,
) -> None:
    """Invert the trigger that may be in a checkpoint; no verdict."""
    from backdrift.cli._progress import progress_bar
    from backdrift.core.registry import build
    from backdrift.detection._base import to_array
    from backdrift.io.evidence import save_candidates

    inversion = build("inversion", method, settings(option))
    check_device(device)
    if output is not None:
        check_new(output)
    loaded = open_model(model, device, batch_size)
    begun = time.monotonic()
    with progress_bar(method, quiet) as progress:
        found = inversion(loaded, seed=seed, progress=progress)
    seconds = time.monotonic() - begun
    lines = [f"{'start':28s} {'family':7s} {'norm':>8s} {'gain':>8s}"]
    lines += [f"{c.start:28s} {c.family:7s} {c.norm:8.2f} {c.gain:8.3f}" for c in found]
    lines.append(f"{loaded.evaluations:,} evaluations, {seconds:.1f} s, seed {seed}")
    if output is not None:
        facts = {
            "method": method,
            "config": {k: str(v) for k, v in vars(inversion).items()},
            "seed": seed,
            "weights_sha256": loaded.origin.sha256,
            "evaluations": loaded.evaluations,
            "seconds": seconds,
        }
        rows = [{"start": c.start, "family": c.family, "norm": c.norm, "gain": c.gain} for c in found]
        shifts = [to_array(c.shift) for c in found]
        aims = [None if c.target is None else loaded.decode(c.target[None])[0] for c in found]
        targets = [None if aim is None else to_array(aim) for aim in aims]
        scales = [None if c.scale is None else to_array(c.scale) for c in found]
        save_candidates(shifts, targets, rows, facts, output, scales)
        lines.append(f"wrote {output}")
    if not quiet:
        write_text("\n".join(lines), None)
