"""Headers, indexes, links, devices, sizes and values."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hostile.corpus import BIN, CONFIG, INDEX, PIPELINE, SCHEDULER, WEIGHTS, Case, edit, raw
from hostile.pickles import payloads


def _file(header: object, payload: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def _info(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def headers() -> dict[str, bytes]:
    """Weight files that no honest writer makes."""
    one = json.dumps(_info()).encode()
    return {
        "empty": b"", "short": b"\x08", "zero": struct.pack("<Q", 0), "huge": _file({}, length=2**63),
        "sixteen-mib": _file({}, length=(16 << 20) + 1), "past-end": _file({"a": _info()}, length=4096),
        "not-json": _file(b"x" * 64), "array": _file([]), "no-tensors": _file({}, b""),
        "twice": _file(b'{"a":' + one + b',"a":' + one + b"}", b"\0" * 4),
        "overlap": _file({"a": _info(), "b": _info()}, b"\0" * 4),
        "gap": _file({"a": _info(), "b": _info(offsets=[8, 12])}, b"\0" * 12),
        "trailing": _file({"a": _info()}, b"\0" * 4 + b"PK\x03\x04payload"),
        "missing-bytes": _file({"a": _info(shape=[1000], offsets=[0, 4000])}, b"\0" * 8),
        "reversed": _file({"a": _info(offsets=[4, 0])}, b"\0" * 4),
        "overflow": _file({"a": _info(shape=[2**62, 4], offsets=[0, 0])}, b""),
        "wrap": _file({"a": _info(shape=[2**32, 2**32], offsets=[0, 0])}, b""),
        "zero-size": _file({"a": _info(shape=[0], offsets=[0, 0])}, b""),
        "negative": _file({"a": _info(shape=[-1])}, b"\0" * 4),
        "boolean": _file({"a": _info(shape=[True])}, b"\0" * 4),
        "fraction": _file({"a": _info(shape=[1.0])}, b"\0" * 4),
        "dimensions": _file({"a": _info(shape=[1] * 1000)}, b"\0" * 4),
        "dtype": _file({"a": _info(dtype="OBJECT")}, b"\0" * 4),
        "dtype-i8": _file({"a": _info(dtype="I8", offsets=[0, 1])}, b"\0"),
        "dtype-list": _file({"a": _info(dtype=["F32"])}, b"\0" * 4),
        "more-keys": _file({"a": _info(extra="x")}, b"\0" * 4),
        "fewer-keys": _file({"a": {"dtype": "F32"}}, b"\0" * 4),
        "metadata": _file({"__metadata__": {"a": 1}, "a": _info()}, b"\0" * 4),
        "metadata-list": _file({"__metadata__": [], "a": _info()}, b"\0" * 4),
        "deep": _file(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "nan": _file(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"\0" * 4),
        "many": _file({str(n): _info(offsets=[4 * n, 4 * n + 4]) for n in range(30_000)}, b"\0" * 3),
        "controls": _file({"\x1b]0;evil\x07\n": _info(dtype="X")}, b"\0" * 4),
    }  # fmt: skip


def _headers() -> Iterator[Case]:
    for name, data in headers().items():
        yield Case("weight header", f"header-{name}", partial(raw, str(WEIGHTS), data), (2,))


def _indexed(document: Any, folder: Path, marker: Path) -> None:
    (folder / BIN).write_bytes(payloads(marker)["os.system"])
    (folder / INDEX).write_text(document if isinstance(document, str) else json.dumps(document))


def _indexes() -> Iterator[Case]:
    traversal = "GHSA-9mfc-5mqx-wxhr (diffusers 14175)"
    good = WEIGHTS.name
    for name, document in {
        "bin": {"weight_map": {"a": "diffusion_pytorch_model.bin"}},
        "up": {"weight_map": {"a": "../../../../etc/passwd"}},
        "up-safetensors": {"weight_map": {"a": "../../x.safetensors"}},
        "absolute": {"weight_map": {"a": "/etc/x.safetensors"}},
        "backslash": {"weight_map": {"a": "..\\x.safetensors"}},
        "folder": {"weight_map": {"a": "deep/x.safetensors"}},
        "url": {"weight_map": {"a": "https://example.org/x.safetensors"}},
        "number": {"weight_map": {"a": 3}},
        "list": {"weight_map": ["a"]},
        "none": {"weight_map": None},
        "empty": {"weight_map": {}},
        "missing": {"weight_map": {"a": "absent.safetensors"}},
        "wrong-tensor": {"weight_map": {"no.such.tensor": good}},
        "part": {"weight_map": {"conv_in.bias": good}},
        "more": {"weight_map": {"conv_in.bias": good}, "auto_map": {}},
        "cut": '{"weight_map": {',
        "twice": '{"weight_map": {"a": "x.safetensors", "a": "x.bin"}}',
        "null-byte": {"weight_map": {"a": "x\0.safetensors"}},
    }.items():
        yield Case("shard index", f"shards-{name}", partial(_indexed, document), (2,), advisory=traversal)


def _link(name: str, target: str, folder: Path, marker: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


def _pipe(name: str, folder: Path, marker: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def _many(folder: Path, marker: Path) -> None:
    (folder / "many").mkdir()
    for number in range(10_001):
        (folder / "many" / str(number)).touch()


def _deep(folder: Path, marker: Path) -> None:
    folder.joinpath(*["d"] * 40).mkdir(parents=True)


def _sparse(folder: Path, marker: Path) -> None:
    """A terabyte that takes no place on the disk: all zeros behind a correct header."""
    count = 2**38
    header = json.dumps({"a": _info(shape=[count], offsets=[0, 4 * count])}).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * count)


def _names(folder: Path, marker: Path) -> None:
    for name in (
        b"\xff\xfe.bin",
        "\u202egpj.pkl".encode(),
        b"\x1b[2J\n.py",
        b"<img src=x onerror=alert(1)>.bin",
    ):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()


def _alike(folder: Path, marker: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    for name in ("\n", "\\n"):
        (folder / WEIGHTS).with_name(f"diffusion_pytorch_model.{name}.safetensors").write_bytes(data)


def _gone(name: str, folder: Path, marker: Path) -> None:
    (folder / name).unlink()


def _files() -> Iterator[Case]:
    for name in (str(WEIGHTS), CONFIG, PIPELINE, "extra.txt"):
        for target in (
            "/etc/passwd",
            "/dev/zero",
            "/proc/self/environ",
            "absent",
            "..",
            "../../../../etc/hosts",
        ):
            title = f"link-{Path(name).name}-{target.replace('/', '_')}"
            yield Case("link", title, partial(_link, name, target), (2,))
        yield Case("link", f"link-{Path(name).name}-itself", partial(_link, name, Path(name).name), (2,))
        yield Case("special file", f"pipe-{Path(name).name}", partial(_pipe, name), (2,))
    for name in (str(WEIGHTS), CONFIG, SCHEDULER):
        yield Case("missing file", f"gone-{Path(name).name}", partial(_gone, name), (2, 3))
    yield Case("too many files", "many", _many, (2,))
    yield Case("too many files", "deep", _deep, (2,))
    yield Case("too large", "sparse", _sparse, (2,))
    yield Case("names", "names", _names, (0,))
    yield Case("names", "names-alike", _alike, (2,))


def _tensors(change: Callable[[dict[str, Any]], object], folder: Path, marker: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _filled(name: str, value: float, tensors: dict[str, Any]) -> None:
    tensors[name] = tensors[name] * 0 + value


def _values() -> Iterator[Case]:
    for name in ("conv_in.bias", "conv_out.weight"):
        for value in (float("nan"), float("inf"), -float("inf")):
            change = partial(_filled, name, value)
            yield Case("values", f"value-{name}-{value}", partial(_tensors, change), (0,))
    yield Case("values", "missing-tensor", partial(_tensors, lambda t: t.pop("conv_in.bias")), (0,))
    yield Case("values", "reshaped", partial(_tensors, _reshape), (0,))
    yield Case("values", "renamed", partial(_tensors, lambda t: t.update(evil=t.pop("conv_in.bias"))), (0,))
    for change in ({"norm_num_groups": 5}, {"sample_size": 9}, {"block_out_channels": [16384]},
                   {"layers_per_block": 64}, {"down_block_types": ["AttnDownBlock2D"]}):  # fmt: skip
        name = f"unfit-{next(iter(change))}"
        yield Case("config unlike weights", name, partial(edit, CONFIG, change), (0,))


def _reshape(tensors: dict[str, Any]) -> None:
    tensors["conv_in.weight"] = tensors["conv_in.weight"].reshape(-1)


MAKERS = (_headers, _indexes, _files, _values)
