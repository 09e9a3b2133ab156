from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backdrift.io.errors import CheckpointError
from backdrift.io.header import read_header


def tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"b": torch.ones(2, 3), "a": torch.ones((), dtype=torch.bfloat16)}
    save_file(tensors, path, {"backdoor": "yes"})
    header = read_header(path, path.name)
    assert [(t.name, t.dtype, t.shape) for t in header.tensors] == [
        ("a", "BF16", ()),
        ("b", "F32", (2, 3)),
    ]
    assert header.metadata == {"backdoor": "yes"}
    assert header.size == path.stat().st_size == header.data_start + 26


BAD = {
    "gap": ({"a": tensor(0, 4), "b": tensor(8, 12)}, 12, "leaves a gap"),
    "gap at the start": ({"a": tensor(4, 8)}, 8, "leaves a gap"),
    "overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "overlaps"),
    "same bytes twice": ({"a": tensor(0, 4), "b": tensor(0, 4)}, 4, "overlaps"),
    "trailing bytes": ({"a": tensor(0, 4)}, 9, "5 bytes that belong to no tensor"),
    "truncated": ({"a": tensor(0, 400)}, 12, "388 bytes short"),
    "wrong size": ({"a": tensor(0, 8, [3])}, 8, "do not match"),
    "overflow": ({"a": tensor(0, 0, [2**62, 4, 2**62])}, 0, "do not match"),
    "backwards": ({"a": tensor(8, 4, [1])}, 8, "do not match"),
    "empty tensor": ({"a": tensor(0, 0, [0, 3])}, 0, "no elements"),
    "negative shape": ({"a": tensor(0, 4, [-1, -1])}, 4, "no valid shape"),
    "bool shape": ({"a": tensor(0, 4, [True])}, 4, "no valid shape"),
    "too many dimensions": ({"a": tensor(0, 4, [1] * 9)}, 4, "no valid shape"),
    "integers": ({"a": tensor(0, 4, [1], "I32")}, 4, "has dtype 'I32'"),
    "list as dtype": ({"a": {**tensor(0, 4), "dtype": ["F32"]}}, 4, "has dtype"),
    "offsets": ({"a": {**tensor(0, 4), "data_offsets": [0]}}, 4, "data_offsets"),
    "extra key": ({"a": {**tensor(0, 4), "evil": 1}}, 4, "must have dtype"),
    "not an object": ({"a": 3}, 4, "must have dtype"),
    "no tensors": ({"__metadata__": {}}, 0, "no tensors"),
    "metadata": ({"__metadata__": {"a": 1}, "a": tensor(0, 4)}, 4, "__metadata__"),
    "list": ([], 0, "JSON object"),
    "garbage": (b"\xff\xfe", 0, "not strict JSON"),
    "nested": (b'{"a":' * 3000 + b"1" + b"}" * 3000, 0, "nested"),
    "bracket bomb": (b"[" * 200_000, 0, "JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_are_refused(name: str, safetensors_file) -> None:
    header, payload, message = BAD[name]
    path = safetensors_file(header, bytes(payload))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path, path.name)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()


def test_duplicate_names_are_refused(safetensors_file) -> None:
    one = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    with pytest.raises(CheckpointError, match="duplicate key 'a'"):
        read_header(safetensors_file(b"{" + one + b"," + one + b"}", bytes(4)), "x")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, (16 << 20) + 1])
def test_huge_header_length_is_refused(length: int, safetensors_file) -> None:
    with pytest.raises(CheckpointError, match="announces a header"):
        read_header(safetensors_file({}, length=length), "x")


def test_header_past_the_end_and_short_files(safetensors_file, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ends inside its header"):
        read_header(safetensors_file({}, length=100), "x")
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="too short"):
        read_header(tmp_path / "short", "x")


def test_links_and_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path / "pipe", "x")
    with pytest.raises(CheckpointError, match="cannot open"):
        read_header(tmp_path / "link", "x")


def test_hostile_names_cannot_write_to_the_terminal(safetensors_file) -> None:
    path = safetensors_file({"a\x1b[2J\n\u202e" + "x" * 5000: tensor(0, 0, [0])})
    with pytest.raises(CheckpointError) as caught:
        read_header(path, "evil\n\x1b]0;name")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
