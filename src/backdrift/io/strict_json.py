"""JSON from strangers: bounded, without duplicate keys, without NaN and infinity."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from backdrift.io.errors import CheckpointError, shown
from backdrift.io.files import read_up_to

MAX_BYTES = 1 << 20
MAX_INDEX_BYTES = 4 << 20
MAX_DEPTH = 16


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """Parses one JSON object.

    Args:
        data: UTF-8 text.
        name: what to call it in a message.

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, a duplicate key, NaN or infinity, or
            nested deeper than ``MAX_DEPTH``.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise CheckpointError(f"{shown(name)}: JSON nested too deep", "BD202") from None
    except ValueError as error:
        raise CheckpointError(f"{shown(name)} is not strict JSON: {error}", "BD201") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{shown(name)} must hold a JSON object", "BD201")
    _check_depth(value, name)
    return value


def read_object(path: Path, name: str, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Reads a JSON file of at most ``limit`` bytes; raises as :func:`parse_object`."""
    data = read_up_to(path, limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{shown(name)} is larger than {limit} bytes", "BD202")
    return parse_object(data, name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {shown(key)}")
        result[key] = value
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _check_depth(value: dict[str, Any], name: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _containers(item)]
        if not level:
            return
    raise CheckpointError(f"{shown(name)}: JSON nested deeper than {MAX_DEPTH}", "BD202")


def _containers(value: dict[str, Any] | list[Any]) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, dict | list)]
