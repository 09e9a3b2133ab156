"""What runs in the process that scans. No file of a checkpoint is opened here before the limits hold."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdrift.isolation import limits, wire

if TYPE_CHECKING:
    from backdrift.core.results import Report

Send = Callable[[bytes], None]

UNNEEDED = (
    "aiter", "apex", "auto_round", "bitsandbytes", "cv2", "deepspeed", "dill", "flash_attn",
    "flash_attn_3", "flash_attn_interface", "flashinfer", "flashpack", "ftfy", "gguf", "jax", "kernels",
    "librosa", "modelopt", "nltk", "onnxruntime", "optimum", "peft", "sageattention", "sdnq",
    "sentencepiece", "tensorboard", "tensorflow", "timm", "torchao", "torchsde", "torchvision",
    "transformers", "wandb", "xformers",
)  # fmt: skip
"""What torch, diffusers and accelerate import where it is installed and a scan has no use for. As they are
imported some of them do what is refused here (dill opens a file for writing), or fail."""


def main(job: dict[str, Any]) -> None:
    """Does one job of :mod:`backdrift.isolation.parent` and sends the result to standard output.

    What libraries print goes to standard error. Nothing is written anywhere else.
    """
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    tempfile.tempdir = os.getcwd()  # asked for at import, never written to
    _die_with_parent()

    def send(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[channel.write(view) :]

    held = limits.apply(job["memory"], job["seconds"], job["device"], job.get("size", 0))
    try:
        if job["task"] == "probe":
            send(wire.frame(wire.DONE, wire.to_json([limit.model_dump() for limit in held])))
        elif job["task"] == "convert":
            from backdrift.io.pickles import check_pickle_file

            check_pickle_file(_path(job))  # what is hostile does not even meet torch

            with _alone():
                from backdrift.io.convert import convert

            convert(_path(job), job["descriptor"], job["size"])
            send(wire.frame(wire.DONE, b"null"))
        else:
            _scan(job, held, send)
    except Exception as error:
        send(wire.frame(wire.FAILURE, wire.to_json(_failure(error))))


def _scan(job: dict[str, Any], held: list[Any], send: Send) -> None:
    from backdrift.io.plan import plan
    from backdrift.io.weights import Bounds

    bounds = Bounds(**job["bounds"])
    converted = {name: Path(path) for name, path in job["converted"].items()}
    plan(_path(job), bounds, converted)  # refuses most of what is hostile before torch is there

    with _alone():
        import torch

        from backdrift.core.registry import file_options
        from backdrift.scanner import scan

        import_module("backdrift.core.sampling")  # the schedulers of diffusers

    if job["threads"] is not None:
        torch.set_num_threads(job["threads"])

    def progress(done: int, total: int, text: str) -> None:
        send(wire.frame(wire.PROGRESS, wire.to_json([done, total, text])))

    def keep(report: Report) -> None:
        report.limits = held
        send(wire.partial_frame(report))

    how = dict(job["how"])
    named = file_options("detection", how["detector"], how["options"])
    absolute = {key: str(Path(job["folder"], path)) for key, path in named.items()}
    how["options"] = {**(how["options"] or {}), **absolute}
    report = scan(_path(job), **how, bounds=bounds, converted=converted, progress=progress, keep=keep)
    report.limits = held
    wire.send_report(report, send)
    send(wire.frame(wire.DONE, b"null"))


@contextmanager
def _alone() -> Iterator[None]:
    """Meanwhile the packages of ``UNNEEDED`` seem not to be installed."""
    hidden = [name for name in UNNEEDED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # so an import of it fails
    try:
        yield
    except (PermissionError, RuntimeError) as error:  # diffusers makes the second of the first
        if not any(words in str(error) for words in ("not permitted", "is refused")):
            raise
        raise RuntimeError(
            f"a package does as it is imported what the process that scans may not ({error}): "
            "BACKDRIFT_DEBUG=1 shows which; scan with --in-process, or where it is not installed"
        ) from error
    finally:
        for name in hidden:
            del sys.modules[name]


def _path(job: dict[str, Any]) -> Path:
    return Path(os.fsdecode(bytes.fromhex(job["path"])))


def _failure(error: Exception) -> dict[str, Any]:
    from backdrift.io.errors import CheckpointError

    if os.environ.get("BACKDRIFT_DEBUG"):
        traceback.print_exc()
    text = " ".join(str(error)[:4096].split())
    if isinstance(error, CheckpointError):
        return {"message": text, "exit_code": error.exit_code, "rule": error.rule}
    if isinstance(error, MemoryError) or any(words in text for words in wire.NO_MEMORY):
        return {"message": "", "exit_code": 2, "rule": "BD007"}
    return {"message": f"{type(error).__name__}: {text}", "exit_code": 2, "rule": "BD005"}


def _die_with_parent() -> None:
    """On Linux the kernel ends this process when its parent dies; elsewhere a closed pipe does, later."""
    if sys.platform == "linux":
        import ctypes

        death_signal, kill = 1, 9
        ctypes.CDLL(None).prctl(death_signal, kill, 0, 0, 0)
