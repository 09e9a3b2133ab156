"""``backdrift evaluate MODEL``: attack success and utility, with the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backdrift.cli._options import (
    BatchSize,
    Countermeasure,
    Device,
    Evidence,
    Model,
    OnBadImage,
    Options,
    Quiet,
    Record,
    RecordSampler,
    SamplerSteps,
    Seed,
    check_device,
    check_folder,
    countermeasure,
    open_model,
    write_text,
)

if TYPE_CHECKING:
    from backdrift.evaluate import Evaluation

NAME = "evaluate"


def main(
    model: Model,
    backdoor: Record = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=20, help="Without the trigger.")] = 1000,
    triggered: Annotated[
        int | None, typer.Option("--triggered", min=20, help="With the trigger; as many without.")
    ] = None,
    sampler: RecordSampler = None,
    steps: SamplerSteps = 100,
    data: Annotated[
        str | None, typer.Option("--data", help="Clean training set; as the record has it without.")
    ] = None,
    on_bad_image: OnBadImage = "refuse",
    clean_twin: Annotated[
        Path | None, typer.Option("--clean-twin", help="Clean checkpoint for the ratio of FDs.")
    ] = None,
    fid_weights: Annotated[
        Path | None, typer.Option("--fid-weights", help="Inception weights: FID in place of FD.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file.")] = None,
    repair: Countermeasure = None,
    evidence: Evidence = None,
    option: Options = None,
    quiet: Quiet = False,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 256,
) -> None:
    """Measure ASR, MSE, SSIM, FD and KD of a model whose backdoor is known."""
    from backdrift.cli._progress import progress_bar
    from backdrift.core.sampling import make_scheduler, usual_sampler
    from backdrift.data import load_dataset
    from backdrift.evaluate import CleanTwin, Plan, evaluate
    from backdrift.groundtruth import load_backdoor

    if output is not None:
        check_folder(output)
    check_device(device)
    planted = load_backdoor(backdoor or Path(model))
    extractor, replicates = None, 200
    if fid_weights is not None:
        from backdrift.metrics.fid import REPLICATES, Inception

        extractor, replicates = Inception(fid_weights), REPLICATES
    loaded = open_model(model, device, batch_size)
    usual = usual_sampler(planted.record.sampler_family, loaded.schedule)
    how = Plan(samples, sampler or usual, steps, seed, triggered)
    make_scheduler(how.sampler, loaded.schedule)
    hook = countermeasure(repair, option, evidence, loaded, seed)
    reference = planted.record.data if data is None else data
    as_recorded = data is None and on_bad_image == "refuse"
    on_bad = planted.record.on_bad if as_recorded else on_bad_image
    known = load_dataset(reference, loaded.image_shape, on_bad=on_bad) if reference else None
    recorded = planted.record.data_sha256 if data is None else ""
    if known is not None and recorded not in ("", known.sha256):
        raise ValueError(
            f"{reference} is not what the model was trained on: its images differ; give --data"
        )
    twin = None
    if clean_twin is not None:
        other = open_model(clean_twin, device, batch_size)
        if known is None:
            raise ValueError("a clean twin is compared by FD, which needs the training set: give --data")
        with progress_bar("clean twin", quiet) as progress:
            twin = CleanTwin.measure(
                other, known.images, how, extractor, replicates=replicates, progress=progress
            )
    with progress_bar("evaluate", quiet) as progress:
        found = evaluate(
            loaded,
            planted,
            None if known is None else known.images,
            how,
            reference="" if known is None else known.name,
            clean_twin=twin,
            extractor=extractor,
            replicates=replicates,
            hook=hook,
            progress=progress,
        )
    if output is not None:
        write_text(found.model_dump_json(indent=2), output)
    if not quiet:
        write_text(_text(found), None)


def _text(found: Evaluation) -> str:
    from backdrift.metrics.measures import table

    lines = [table(found.measures), f"hit: {found.hit}"]
    if found.countermeasure:
        lines.append(f"countermeasure: {found.countermeasure}, not in the clean twin")
    if not found.reference:
        lines.append("FD and KD were not measured: the record names no data; give --data")
    else:
        lines.append(f"FD and KD: clean samples against {found.reference}")
        if not any(m.name.startswith("KD") for m in found.measures):
            lines.append("KD was not measured: it needs 100 samples and as many images")
    return "\n".join([*lines, f"{found.evaluations:,} evaluations, {found.seconds:.1f} s"])
