"""The report for machines."""

from __future__ import annotations

import json
import math
from typing import Any

from backdrift.core.results import ScanDocument


def render_json(document: ScanDocument) -> str:
    """The document as ASCII JSON with sorted keys, two spaces of indent and a final newline.

    JSON has no NaN and no infinity: they are written as null. Half a surrogate pair, which a path
    that is not UTF-8 can hold, is written as a question mark.
    """
    tree = _portable(document.model_dump(mode="json", fallback=str))
    return json.dumps(tree, indent=2, sort_keys=True, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of what ``render_json`` writes."""
    return ScanDocument.model_json_schema(mode="serialization")


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_portable(key): _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
