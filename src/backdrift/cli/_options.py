"""What several commands share: options, output files, ``-P key=value``."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from backdrift.core.hooks import SamplingHook
    from backdrift.core.model import DiffusionModel

Seed = Annotated[int, typer.Option("--seed", help="Root of all randomness.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", min=1, help="Most samples per pass; halves if memory is short."),
]
OnBadImage = Annotated[
    Literal["refuse", "skip"],
    typer.Option("--on-bad-image", help="An image that cannot be read: stop, or go on without it."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Options = Annotated[
    list[str] | None,
    typer.Option("-P", metavar="KEY=VALUE", help="A setting of the method; repeatable."),
]

Model = Annotated[str, typer.Argument(help="Checkpoint folder.")]
Record = Annotated[Path | None, typer.Option("--backdoor", help="backdoor.json; the one in MODEL without.")]
RecordSampler = Annotated[
    str | None, typer.Option("--sampler", help="ddpm, ddim, ...; as the record has it without.")
]
SamplerSteps = Annotated[int, typer.Option("--steps", min=1, help="Of the sampler.")]
Evidence = Annotated[
    Path | None,
    typer.Option("--evidence", help="What backdrift scan --evidence wrote of this model."),
]
Countermeasure = Annotated[
    str | None,
    typer.Option("--repair", help="clipping or input_filter: a repair that acts while sampling."),
]


def settings(pairs: list[str] | None) -> dict[str, Any]:
    """``["a=1"]`` to ``{"a": "1"}``.

    Raises:
        ValueError: a pair without an equals sign.
    """
    found = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign:
            raise ValueError(f"-P {pair}: expected KEY=VALUE")
        found[key.strip().replace("-", "_")] = value
    return found


_PIECE = 1000
"""Characters that a pipe takes whole: an unbuffered Python drops the rest of a write that was cut short."""


def write_text(text: str, path: Path | None) -> None:
    """To standard output, or to a file by way of a temporary one; to a pipe or device directly.

    Its folder is made when it is gone: work was done for this text.

    Raises:
        OSError: it cannot be written whole; nothing is left in a folder.
    """
    from backdrift.io.files import replaced_file

    if path is None:
        _print(text if text.endswith("\n") else text + "\n")
        return
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        with replaced_file(path) as fresh:
            fresh.write_text(text, encoding="utf-8")
    except OSError as error:
        error.filename = str(path)  # a write that fails names no file
        raise


class Closed(io.TextIOBase):
    """Stands in the place of a standard output that is closed: what is printed is lost, and says so."""

    def write(self, text: str) -> int:
        """Raises ``OSError``."""
        raise OSError(errno.EBADF, "it is closed")


def _print(text: str) -> None:
    try:
        for start in range(0, len(text), _PIECE):
            sys.stdout.write(text[start : start + _PIECE])
        sys.stdout.flush()
    except OSError:
        forget_output()
        raise


def forget_output() -> None:
    """Sends standard output nowhere: what is left in its buffer would fail again at exit."""
    if isinstance(sys.stdout, Closed):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def check_folder(path: Path) -> None:
    """Fails before any work when a file has no folder to lie in.

    Raises:
        ValueError: no such folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: no folder {path.parent}")


def check_new(folder: Path) -> None:
    """Fails before any work when a folder that is to be made is there.

    Raises:
        ValueError: it exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: name a new folder, or remove it")


def check_device(name: str) -> None:
    """Fails before any work when a device is not there.

    Raises:
        ValueError: torch cannot use it.
    """
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not usable here: {reason}") from None


def open_model(path: str | Path, device: str, batch_size: int, pixels_for: str = "") -> DiffusionModel:
    """The model of a checkpoint, loaded into this process.

    Args:
        pixels_for: a command that takes no model of latents.

    Raises:
        CheckpointError: see :func:`backdrift.io.load.load`.
    """
    from backdrift.io.load import load
    from backdrift.io.plan import plan

    planned = plan(path)
    model = load(planned.of_pixels(pixels_for) if pixels_for else planned, None, device)
    model.batch_size = batch_size
    return model


def countermeasure(
    name: str | None,
    pairs: list[str] | None,
    evidence: Path | None,
    model: DiffusionModel,
    seed: int,
) -> SamplingHook | None:
    """The sampling hook of ``--repair``, ``-P`` and ``--evidence``; None without a name.

    Raises:
        ValueError: unknown repair, one that changes weights, or the other options without it.
    """
    if name is None:
        if pairs or evidence is not None:
            raise ValueError("-P and --evidence are settings of --repair: name one")
        return None
    from backdrift.core.registry import build
    from backdrift.repair._checkpoint import evidence_for, hook_for

    return hook_for(build("repair", name, settings(pairs)), model, evidence_for(model, evidence), seed)
