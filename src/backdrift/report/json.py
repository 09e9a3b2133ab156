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
    tree = portable(document.model_dump(mode="json", fallback=str))
    return json.dumps(tree, indent=2, sort_keys=True, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of what ``render_json`` writes."""
    tree = ScanDocument.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **tree}


def portable(value: Any) -> Any:
    """A tree of JSON values without NaN, infinity and half surrogate pairs."""
    if isinstance(value, dict):
        return {portable(key): portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
