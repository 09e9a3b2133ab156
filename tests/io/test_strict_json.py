from __future__ import annotations

from pathlib import Path

import pytest

from backdrift.io.errors import CheckpointError
from backdrift.io.strict_json import MAX_BYTES, parse_object, read_object


def test_reads_an_object() -> None:
    assert parse_object(b'{"a": [1, 2.5, null, {"b": "\xc3\xa9"}]}', "x") == {
        "a": [1, 2.5, None, {"b": "\u00e9"}]
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1]", "JSON object"),
        (b"", "not strict JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 1}', "duplicate key 'a'"),
        (b'{"x": {"a": 1, "a": 2}}', "duplicate key 'a'"),
        (b'{"a": "\xff"}', "not strict JSON"),
        (b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}", "nested"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not strict JSON"),
        (b'{"\\u001b[2J": 1, "\\u001b[2J": 1}', "duplicate key"),
    ],
)
def test_refuses_what_is_not_strict(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_object(data, "config.json")
    assert str(caught.value).isprintable()


def test_refuses_large_files(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_bytes(b'{"a": "' + b"x" * MAX_BYTES + b'"}')
    with pytest.raises(CheckpointError, match="larger than"):
        read_object(path, path.name)
