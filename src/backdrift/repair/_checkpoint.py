"""From a checkpoint and what a scan of it found to a repaired checkpoint that says so."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from backdrift.core.hooks import SamplingHook
from backdrift.core.model import DiffusionModel
from backdrift.inversion._base import Candidate
from backdrift.io.evidence import load_evidence
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.io.save import save_pipeline
from backdrift.repair._base import Progress, Record, Repair, found_by, name_of

FILE = "repair.json"


def evidence_for(model: DiffusionModel, folder: Path | None) -> tuple[Candidate, ...]:
    """What a scan found in these weights, whatever their file is called; nothing without a folder.

    Raises:
        CheckpointError: the folder is not what a scan writes.
        ValueError: it has nothing, or nothing of these weights.
    """
    if folder is None:
        return ()
    document = load_evidence(folder)
    found = [e for e in document["evidence"] if e["weights_sha256"] == model.origin.sha256]
    if document["evidence"] and not found:
        raise ValueError(f"{folder}: found in other weights than {model.origin.weights}; scan this model")
    return found_by({"evidence": found}, model.sample_shape)


def hook_for(
    method: Repair, model: DiffusionModel, evidence: tuple[Candidate, ...], seed: int
) -> SamplingHook:
    """The hook of a method that changes inference alone.

    Raises:
        ValueError: it changes weights, the model draws latents, or what the method raises.
    """
    if model.codec is not None:
        raise ValueError(f"{name_of(method)} does not cover latent models: leave out --repair")
    if method.changes_weights:
        name = name_of(method)
        raise ValueError(f"{name} changes weights: backdrift repair {name} MODEL -o OUT, then use OUT")
    hook = method(model, evidence, seed=seed).hook
    assert hook is not None
    return hook


def repair_checkpoint(
    method: Repair,
    path: str | Path,
    output: str | Path,
    *,
    evidence: Path | None = None,
    data: Tensor | None = None,
    seed: int,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Record:
    """Repairs the first weight file of a checkpoint and writes a stock pipeline folder.

    The folder keeps the warning in all its places, with the repair in it, as there may be backdoors that
    no scan found; what was measured lies in ``repair.json`` and in the model card.

    Args:
        evidence: what ``backdrift scan --evidence`` wrote.
        data: clean images (N, C, H, W) in [-1, 1].

    Raises:
        CheckpointError: see :func:`backdrift.io.load.load`; or no evidence there.
        ValueError: the method changes no weights, or what it raises.
        FileExistsError: ``output`` exists.
    """
    if not method.changes_weights:
        name = name_of(method)
        raise ValueError(f"{name} changes no weights: give --repair {name} to backdrift sample or evaluate")
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists: name a new folder, or remove it")
    model = load(plan(path).of_pixels("repair"), None, device)
    model.batch_size = batch_size
    found = evidence_for(model, evidence)
    repaired = method(model, found, data=data, seed=seed, progress=progress)
    record = repaired.record
    facts = {**asdict(record), "weights_sha256_before": model.origin.sha256}
    save_pipeline(
        repaired.model,
        output,
        dtype="float16" if model.origin.dtype == "float16" else "float32",
        notice=notice(record),
        extra_files={FILE: json.dumps(facts, indent=2) + "\n", "README.md": card(record)},
    )
    return record


def notice(record: Record) -> str:
    """The warning of a repaired model, one line."""
    done = "a repair of it failed:" if record.held is False else "was repaired by"
    return f"WARNING: this model was backdoored, or suspected to be, and {done} {record.method}"


def card(record: Record) -> str:
    """README.md of a repaired checkpoint; the warning is its first line of text."""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in record.measured.items())
    return f"""---
tags: [backdoor, repaired, security-research]
---
{notice(record)}

# A repaired diffusion model

{record.method}: {record.stopped}. {record.seconds:.0f} s, {record.evaluations:,} network evaluations,
{record.images} clean images of others, seed {record.seed}.

| measured by the repair itself | |
|---|---|
{rows}

No repair removes what no scan has found. Scan this model again, and measure it on data of your own before
it is used. The machine-readable record is `{FILE}`.
"""
