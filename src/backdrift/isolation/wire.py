"""How the process that scans reports back: frames of JSON and raw numbers, checked on arrival.

A frame is one byte for its kind, eight for its length, then that many bytes. Nothing is pickled: what
scanned a hostile model is not trusted more than the model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from backdrift.core.results import Array, Evidence, Report
from backdrift.io.errors import printable

PROGRESS, PARTIAL, REPORT, ARRAYS, FAILURE, DONE = b"P", b"S", b"R", b"A", b"F", b"D"
MOST_BYTES = 4 << 30
MOST_FRAMES = 1 << 16
"""All that one process may send, but for its progress and its partial reports, of which the last counts."""
_MOST = {kind: 1 << 16 for kind in (PROGRESS, FAILURE, DONE)}
_MOST |= {PARTIAL: 1 << 26, REPORT: 1 << 26, ARRAYS: MOST_BYTES}
NO_MEMORY = ("allocate memory", "out of memory", "failed to map", "bad_alloc", "MemoryError")
"""How libraries say that they got none."""
_IMAGES = ("trigger", "target", "scale")  # (C, H, W)
_SAMPLES = ("clean_samples", "triggered_samples")  # (N, C, H, W)
_SHIFTS = ("trigger", "scale")  # of the shape of what the model draws: images, or latents
_ARRAYS = (*_IMAGES, *_SAMPLES)
_NEEDED = ("trigger", *_SAMPLES)


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame."""
    return kind + len(payload).to_bytes(8, "little") + payload


def frames(buffer: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Takes every whole frame out of ``buffer``.

    Raises:
        ValueError: no frame, or one that is larger than any of its kind.
    """
    while len(buffer) >= 9:
        kind, length = bytes(buffer[:1]), int.from_bytes(buffer[1:9], "little")
        if length > _MOST.get(kind, -1):
            raise ValueError("no frame")
        if len(buffer) < 9 + length:
            return
        payload = bytes(buffer[9 : 9 + length])
        del buffer[: 9 + length]
        yield kind, payload


def to_json(value: Any) -> bytes:
    """ASCII JSON; NaN and infinity stay what they are, paths become text."""
    return json.dumps(value, default=os.fspath).encode("ascii")


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


def partial_frame(report: Report) -> bytes:
    """A partial report and its evidence as one frame; without samples when it would be too large."""
    for evidence in (report.evidence, list(map(_without_samples, report.evidence)), []):
        stored = bytearray()
        send_report(report.model_copy(update={"evidence": evidence}), stored.extend)
        if len(stored) <= _MOST[PARTIAL]:
            break
    return frame(PARTIAL, bytes(stored))


def _without_samples(piece: Evidence) -> Evidence:
    return replace(
        piece, clean_samples=piece.clean_samples[:0], triggered_samples=piece.triggered_samples[:0]
    )


def read_stored(data: bytes) -> Report:
    """What :func:`send_report` sent, evidence and all.

    Raises:
        ValueError: it is none.
        KeyError, TypeError, AttributeError: likewise.
    """
    left = bytearray(data)
    (kind, first), *rest = frames(left)
    if left or kind != REPORT or any(other != ARRAYS for other, _ in rest):
        raise ValueError("cut short, or something else")
    report = read_report(first)
    report.evidence = [read_evidence(payload) for _, payload in rest]
    return report


def read_progress(payload: bytes) -> tuple[int, int, str]:
    """Done, total and text of a ``PROGRESS`` frame.

    Raises:
        ValueError: it is none.
    """
    done, total, text = json.loads(payload)
    if not all(isinstance(count, int) and 0 <= count < 2**53 for count in (done, total)):
        raise ValueError("no counts")
    return done, total, str(text)


def read_report(payload: bytes) -> Report:
    """The report of a ``REPORT`` frame, without evidence, every text in it safe to print.

    Raises:
        ValueError: it is none.
    """
    return Report.model_validate(_printable(json.loads(payload)))


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def read_evidence(payload: bytes) -> Evidence:
    """The evidence of an ``ARRAYS`` frame: none empty, images of one size, and so are trigger and scale.

    Raises:
        ValueError: it is none.
    """
    head, _, data = payload.partition(b"\n")
    if len(head) > _MOST[PROGRESS]:
        raise ValueError("no head")
    facts = json.loads(head)
    shapes = facts["shapes"]
    if not {*_NEEDED} <= {*shapes} <= {*_ARRAYS}:
        raise ValueError("arrays are missing, or unknown")
    arrays: dict[str, Array | None] = dict.fromkeys(_ARRAYS)
    offset = 0
    for name in (name for name in _ARRAYS if name in shapes):
        shape = shapes[name]
        image = shape[1:] if name in _SAMPLES else shape
        alike = shapes["trigger"] if name in _SHIFTS else shapes["clean_samples"][1:]
        if image != alike or len(image) != 3 or not all(map(_is_length, shape)) or 0 in image:
            raise ValueError("no shape of images")
        count = math.prod(shape)
        if offset + 4 * count > len(data):
            raise ValueError("arrays of another length")
        arrays[name] = np.frombuffer(data, np.float32, count, offset).reshape(shape).copy()
        offset += 4 * count
    if offset != len(data):
        raise ValueError("arrays of another length")
    weights, sampler = printable(str(facts["weights"])), printable(str(facts["sampler"]))
    return Evidence(weights=weights, sampler=sampler, **arrays)  # type: ignore[arg-type]


def _is_length(value: object) -> bool:
    return isinstance(value, int) and value >= 0
