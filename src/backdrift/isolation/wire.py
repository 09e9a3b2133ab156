"""How the process that scans reports back: frames of JSON and raw numbers, checked on arrival.

A frame is one byte for its kind, eight for its length, then that many bytes. Nothing is pickled: what
scanned a hostile model is not trusted more than the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from backdrift.core.results import Array, Evidence, Report

PROGRESS, REPORT, ARRAYS, FAILURE, DONE = b"P", b"R", b"A", b"F", b"D"
MOST_BYTES = 4 << 30
NO_MEMORY = ("allocate memory", "out of memory", "failed to map", "bad_alloc", "MemoryError")
"""How libraries say that they got none."""
_ARRAYS = ("trigger", "target", "clean_samples", "triggered_samples", "scale")


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame."""
    return kind + len(payload).to_bytes(8, "little") + payload


def frames(buffer: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Takes every whole frame out of ``buffer``.

    Raises:
        ValueError: no frame, or one that is larger than any report.
    """
    while len(buffer) >= 9:
        kind, length = bytes(buffer[:1]), int.from_bytes(buffer[1:9], "little")
        if kind not in (PROGRESS, REPORT, ARRAYS, FAILURE, DONE) or length > MOST_BYTES:
            raise ValueError("no frame")
        if len(buffer) < 9 + length:
            return
        payload = bytes(buffer[9 : 9 + length])
        del buffer[: 9 + length]
        yield kind, payload


def to_json(value: Any) -> bytes:
    """ASCII JSON; NaN and infinity stay what they are."""
    return json.dumps(value).encode("ascii")


def send_report(report: Report, send: Callable[[bytes], object]) -> None:
    """The report as one frame, its evidence as one more for each piece."""
    send(frame(REPORT, to_json(report.model_dump(mode="json"))))
    for piece in report.evidence:
        arrays = {name: getattr(piece, name) for name in _ARRAYS}
        head = {
            "weights": piece.weights,
            "sampler": piece.sampler,
            "shapes": {name: array.shape for name, array in arrays.items() if array is not None},
        }
        parts = [np.ascontiguousarray(a, np.float32).tobytes() for a in arrays.values() if a is not None]
        send(frame(ARRAYS, to_json(head) + b"\n" + b"".join(parts)))


def read_progress(payload: bytes) -> tuple[int, int, str]:
    """Done, total and text of a ``PROGRESS`` frame.

    Raises:
        ValueError: it is none.
    """
    done, total, text = json.loads(payload)
    return int(done), int(total), str(text)


def read_report(payload: bytes) -> Report:
    """The report of a ``REPORT`` frame, without evidence.

    Raises:
        ValueError: it is none.
    """
    return Report.model_validate(json.loads(payload))


def read_evidence(payload: bytes) -> Evidence:
    """The evidence of an ``ARRAYS`` frame.

    Raises:
        ValueError: it is none.
    """
    head, _, data = payload.partition(b"\n")
    facts = json.loads(head)
    arrays: dict[str, Array | None] = dict.fromkeys(_ARRAYS)
    offset = 0
    for name in _ARRAYS:
        if name not in facts["shapes"]:
            continue
        shape = [int(length) for length in facts["shapes"][name]]
        if min(shape, default=0) < 0 or len(shape) not in (3, 4):
            raise ValueError("no shape of images")
        count = math.prod(shape)
        arrays[name] = np.frombuffer(data, np.float32, count, offset).reshape(shape).copy()
        offset += 4 * count
    if offset != len(data) or any(arrays[name] is None for name in ("trigger", "clean_samples")):
        raise ValueError("arrays of another length")
    return Evidence(weights=str(facts["weights"]), sampler=str(facts["sampler"]), **arrays)  # type: ignore[arg-type]
