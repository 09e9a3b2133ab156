"""Pickle files that would run something, in every place where a loader might find them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hostile.corpus import BIN, CONFIG, PIPELINE, SCHEDULER, WEIGHTS, Case


def _reduce(module: str, name: str, argument: str) -> bytes:
    """A pickle of protocol 2 that calls ``module.name(argument)``."""
    text = argument.encode()
    return (
        b"\x80\x02c"
        + f"{module}\n{name}\n".encode()
        + b"X"
        + struct.pack("<I", len(text))
        + text
        + b"\x85R."
    )


def _stack_global(module: str, name: str, argument: str) -> bytes:
    parts = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
    text = argument.encode()
    return b"\x80\x04" + parts + b"\x93X" + struct.pack("<I", len(text)) + text + b"\x85R."


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that make the marker when they are unpickled, by what they call."""
    shell, python = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    return {
        "os.system": _reduce("os", "system", shell),
        "posix.system": _reduce("posix", "system", shell),
        "builtins.eval": _reduce("builtins", "eval", python),
        "builtins.exec": _reduce("builtins", "exec", python),
        "py2-builtin": _reduce("__builtin__", "eval", python),
        "protocol-0": f"cos\nsystem\n(S'{shell}'\ntR.".encode(),
        "stack-global": _stack_global("os", "system", shell),
        "inst": f"(S'{shell}'\nios\nsystem\n.".encode(),
        "cProfile.run": _reduce("cProfile", "run", python),
        "subprocess": _reduce("subprocess", "getoutput", shell),
        "runpy": _reduce("runpy", "run_path", str(marker.with_suffix(".py"))),
        "import": _reduce("importlib", "import_module", "antigravity"),
        "torch.hub": _reduce("torch.hub", "load", str(marker.parent)),
        "truncated": _reduce("os", "system", shell)[:-3],
    }


def archive(data: bytes, **members: bytes) -> bytes:
    """A zip as ``torch.save`` lays it out, around ``data``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in {"archive/data.pkl": data, "archive/version": b"3\n", **members}.items():
            made.writestr(name, content)
    return buffer.getvalue()


def _put(name: str, make: Callable[[Path], bytes], folder: Path, marker: Path) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make(marker))


def _swap(make: Callable[[Path], bytes], folder: Path, marker: Path) -> None:
    """Pickle weights in the place of the good ones."""
    (folder / WEIGHTS).unlink()
    (folder / BIN).write_bytes(make(marker))


def _payload(name: str, zipped: bool, marker: Path) -> bytes:
    data = payloads(marker)[name]
    return archive(data) if zipped else data


def _pickles() -> Iterator[Case]:
    cve = "CVE-2025-32434, CVE-2026-24747"
    for name in payloads(Path("/m")):
        for zipped in (False, True):
            make = partial(_payload, name, zipped)
            form = "zip" if zipped else "raw"
            yield Case("pickle weights", f"only-{name}-{form}", partial(_swap, make), (3,), True, cve)
            yield Case(
                "pickle beside",
                f"beside-{name}-{form}",
                partial(_put, BIN, make),
                (0,),
                name == "os.system",
            )
    make = partial(_payload, "os.system", True)
    for place, code in (
        (str(WEIGHTS), 2), (CONFIG, 2), (SCHEDULER, 2), (PIPELINE, 2), ("README.md", 0), ("grid.png", 1),
        ("LICENSE", 1), ("notes.txt", 1), ("preprocessor.json", 1), ("optimizer", 0), ("a.pt", 0),
        ("a.pth", 0),
        ("a.ckpt", 0), ("a.pkl", 0), ("a.pickle", 0), ("a.joblib", 0), ("a.npz", 0),
        ("random_states_0.pkl", 0),
        ("unet/pytorch_model.bin", 0), ("unet/diffusion_pytorch_model.fp16.bin", 0),
        ("unet_ema/diffusion_pytorch_model.bin", 0), ("a.safetensors", 0), ("unet/a.safetensors", 2),
    ):  # fmt: skip
        yield Case("pickle in disguise", f"pickle-as-{place}", partial(_put, place, make), (code,))
    bombs = {
        "deflated": lambda m: _deflated(),
        "path": lambda m: archive(b"\x80\x02}.", **{"archive/../../../x": b""}),
        "code-member": lambda m: archive(b"\x80\x02}.", **{"archive/code/x.py": b"import os"}),
        "cut": lambda m: archive(b"\x80\x02}.")[:-20],
        "encrypted": lambda m: _encrypted(),
        "storage": lambda m: archive(_tensor(stride=1), **{"archive/data/0": b"\0" * 8}),
        "expanded": lambda m: archive(_tensor(stride=0), **{"archive/data/0": b"\0" * 8}),
    }
    for name, make in bombs.items():
        yield Case("hostile archive", f"archive-{name}", partial(_swap, make), (3,), True, cve)


def _deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", b"\0" * (64 << 20))
    return buffer.getvalue()


def _encrypted() -> bytes:
    """An archive whose members say that they are encrypted."""
    data = bytearray(archive(b"\x80\x02}."))
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(start) + flags] |= 1
    return bytes(data)


def _tensor(stride: int) -> bytes:
    """2**40 values over a storage of two: the mismatch of CVE-2026-24747, or one that fits (stride 0)."""
    many, two = b"\x8a\x06\0\0\0\0\0\x01", b"K\x02"
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    storage += (two if stride == 0 else many) + b"tQ"
    sizes = many + b"\x85K" + bytes([stride]) + b"\x85\x89"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + sizes
    return b"\x80\x02}X\x01\0\0\0a" + call + b"ccollections\nOrderedDict\n)RtRs."


MAKERS = (_pickles,)
