"""Pickle weights: looked at as opcodes, converted only when they are a state dict of floats."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backdrift.io.convert import convert
from backdrift.io.errors import CheckpointError, NotScannable
from backdrift.io.load import load
from backdrift.io.pickles import check_pickle
from backdrift.io.plan import network_pickles, plan


@pytest.fixture
def pickled(pipeline: Path, weights: Path) -> Path:
    """The pipeline with the pickle file that older versions of diffusers wrote."""
    torch.save(OrderedDict(load_file(weights)), weights.with_suffix(".bin"))
    weights.unlink()
    return pipeline


def converted(source: Path, target: Path, most: int = 1 << 30) -> Path:
    with target.open("wb") as file:
        convert(source, file.fileno(), most)
    return target


def test_converted_weights_are_the_same_numbers(pickled: Path, unet: Any, tmp_path: Path) -> None:
    ((name, source),) = network_pickles(pickled).items()
    assert name == "unet/diffusion_pytorch_model.bin"
    with pytest.raises(NotScannable, match="--allow-pickle") as caught:
        plan(pickled)
    assert caught.value.rule == "BD101"
    planned = plan(pickled, converted={name: converted(source, tmp_path / "0.safetensors")})
    assert [c.name for c in planned.candidates] == [name]
    assert [f.rule for f in planned.static] == ["BD502"]
    mine, theirs = load(planned).network.state_dict(), unet().state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_parameters_and_shared_storages_are_fine(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    state = {"a": torch.nn.Parameter(whole[:6].reshape(2, 3)), "b": whole[3:9], "c": whole.half()}
    torch.save(state, tmp_path / "x.bin")
    found = load_file(converted(tmp_path / "x.bin", tmp_path / "x.safetensors"))
    assert all(torch.equal(found[key], value) for key, value in state.items())


class Payload:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['MARKER']}",)


@pytest.mark.parametrize(
    "state",
    [
        {"a": Payload()},
        Payload(),
        {"a": torch.zeros(2), "b": [1, 2]},
        [torch.zeros(2)],
        {},
        {"a": torch.zeros(2, dtype=torch.int64)},
        {"a": torch.zeros(2, 2).to_sparse()},
        {1: torch.zeros(2)},
        torch.nn.Linear(1, 1),
    ],
    ids=["payload", "bare", "list", "no-dict", "empty", "integers", "sparse", "key", "module"],
)
def test_anything_else_is_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: object
) -> None:
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(CheckpointError) as caught:
        converted(tmp_path / "x.bin", tmp_path / "y")
    assert caught.value.rule in ("BD501", "BD302")
    assert not (tmp_path / "marker").exists()
    assert (tmp_path / "y").stat().st_size == 0


def archive(members: dict[str, bytes], **how: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return buffer


def encrypted(data: bytes) -> io.BytesIO:
    """Says that its only member is encrypted, in both of its headers."""
    changed, central = bytearray(data), data.index(b"PK\x01\x02")
    changed[6] |= 1
    changed[central + 8] |= 1
    return io.BytesIO(changed)


EMPTY = pickle.dumps({}, protocol=2)


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        pickle.dumps(Payload, protocol=4),
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02cbuiltins\neval\n.",
        b"(ios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"P1\n.",
        b"",
        b"\xff\xff",
    ],
)
def test_opcodes_that_no_state_dict_has(data: bytes) -> None:
    check_pickle(archive({"m/data.pkl": EMPTY}), "x")
    with pytest.raises(CheckpointError) as caught:
        check_pickle(archive({"m/data.pkl": data}), "x")
    assert caught.value.rule == "BD501"


@pytest.mark.parametrize(
    "file",
    [
        archive({"m/data.pkl": EMPTY, "m/code/x.py": b""}),
        archive({"m/data.pkl": EMPTY, "n/data.pkl": EMPTY}),
        archive({"m/data.pkl": EMPTY, "../data/0": b""}),
        archive({"m/version": b"3"}),
        archive({"m/data.pkl": EMPTY}, compression=zipfile.ZIP_DEFLATED),
        io.BytesIO(archive({"m/data.pkl": EMPTY}).getvalue()[:-9]),
        io.BytesIO(b"PK\x03\x04"),
        encrypted(archive({"m/data.pkl": EMPTY}).getvalue()),
    ],
)
def test_archives_that_torch_does_not_write(file: io.BytesIO) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_pickle(file, "x")
    assert (caught.value.exit_code, caught.value.rule) == (2, "BD501")


def test_old_formats_and_large_files(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(NotScannable, match="no zip archive"):
        converted(tmp_path / "old.bin", tmp_path / "y")
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="--max-size"):
        converted(tmp_path / "x.bin", tmp_path / "y", most=10)


def test_a_few_bytes_are_no_large_tensor(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 20)}, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").stat().st_size < 1 << 16
    with pytest.raises(CheckpointError, match="--max-size") as caught:
        converted(tmp_path / "x.bin", tmp_path / "y", most=1 << 16)
    assert caught.value.rule == "BD306"
    assert (tmp_path / "y").stat().st_size == 0
