"""What the process that scans sends: bounded, checked, printable, and one line when it is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import backdrift
from backdrift.core.results import Evidence, Report
from backdrift.io.errors import CheckpointError
from backdrift.isolation import process, wire
from backdrift.isolation.limits import Limits
from tiny import tiny_checkpoint


def test_an_option_may_be_a_path() -> None:
    assert wire.to_json({"calibration": Path("x") / "y"}) == b'{"calibration": "x/y"}'
    with pytest.raises(TypeError):
        wire.to_json(object())


class Child:
    """Stands in the place of the process that scans, to send what a broken one would."""

    def __init__(self, code: str) -> None:
        self.code = code

    def run(self, monkeypatch: pytest.MonkeyPatch) -> CheckpointError:
        monkeypatch.setattr(process, "_BOOT", "import os, sys; sys.stdin.buffer.readline(); " + self.code)
        with pytest.raises(CheckpointError) as caught:
            backdrift.scan_isolated("x", limits=Limits(seconds=2 if "sleep" in self.code else 60))
        assert str(caught.value).isprintable()
        assert caught.value.exit_code == 2
        return caught.value


def sends(kind: str, payload: bytes) -> str:
    data = kind.encode() + len(payload).to_bytes(8, "little") + payload
    return f"os.write(1, {data!r})"


SHAPES = (
    b'{"weights": "", "sampler": "", "shapes": '
    b'{"trigger": [1, 1, 1], "clean_samples": [%s, 1, 1, 1], "triggered_samples": [0, 1, 1, 1]}}'
)


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("pass", "code 0"),
        ("sys.exit(9)", "code 9"),
        ("os.write(2, b'evil\\x1b[2J'); sys.exit(9)", "last words"),
        ("os.abort()", "SIGABRT"),
        ("os.kill(os.getpid(), 9)", "killed"),
        ("os.write(2, b'std::bad_alloc'); os.abort()", "--max-memory"),
        ("os.write(1, b'garbage that is no frame')", "no valid report"),
        ("os.write(1, b'R' + b'\\xff' * 8)", "no valid report"),
        (sends("F", b'{"message": "m", "exit_code": 0, "rule": "BD201"}'), "m"),
        (sends("F", b'{"message": "m", "exit_code": 1, "rule": "nonsense"}'), "no valid report"),
        (sends("F", b"[]"), "no valid report"),
        (sends("P", b'"x"'), "no valid report"),
        (sends("R", b"{}") + ";" + sends("D", b"null"), "no valid report"),
        (sends("R", b"cos\nsystem\n.") + ";" + sends("D", b"null"), "no valid report"),
        (sends("A", b'{"shapes": {}}\n') + ";" + sends("D", b"null"), "no valid report"),
        *(
            (sends("A", head + b"\n" + b"\0" * 12) + ";" + sends("D", b"null"), "no valid report")
            for head in (
                b'{"shapes": {"trigger": [1, -1]}}',
                b'{"shapes": {"trigger": [1, 1, 1], "clean_samples": [1, 1, 1, 1], "extra": [1, 1, 1]}}',
                SHAPES % b"Infinity",
                SHAPES % b"9223372036854775807",
                SHAPES % b"3",
                b'{"weights": "", "sampler": "", '
                b'"shapes": {"trigger": [1, 1, 1], "clean_samples": [2, 1, 1, 1]}}',
                b'{"weights": "", "sampler": "", "shapes": {"trigger": [3, 1, 1], '
                b'"clean_samples": [1000000000, 1, 0, 0], "triggered_samples": [0, 3, 1, 1]}}',
            )
        ),
        (sends("P", b'[Infinity, 1, "x"]'), "no valid report"),
        (sends("R", b"[" * 60_000) + ";" + sends("D", b"null"), "no valid report"),
        ("os.write(1, b'R' + (1 << 27).to_bytes(8, 'little'))", "no valid report"),
        (sends("D", b"null"), "without a report"),
        ("import time; os.close(1); os.close(2); time.sleep(60)", "longer than 2 s"),
    ],
)
def test_whatever_the_child_sends_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, code: str, word: str
) -> None:
    assert word in str(Child(code).run(monkeypatch))


@pytest.mark.parametrize("length", [0, 1 << 16])
def test_a_child_that_never_stops_sending_is_ended(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(wire, "MOST_BYTES", 1 << 20)
    flood = (
        f"data = b'A' + ({length}).to_bytes(8, 'little') + bytes({length})\nwhile True: os.write(1, data)"
    )
    assert "no valid report" in str(Child(flood).run(monkeypatch))


def test_a_report_is_printable_whatever_the_child_says(tmp_path: Path) -> None:
    found = backdrift.scan(tiny_checkpoint(tmp_path / "model"), budget="quick", detector="elijah")
    report = json.loads(found.model_dump_json())
    report["findings"][0]["reason"] = "a\x1b[2J\x9b\u202e\n"
    report["config"] = {"\x1b": ["\x07"]}
    read = wire.read_report(wire.to_json(report))
    assert read.findings[0].reason == r"a\x1b[2J\x9b\u202e\n"
    assert read.config == {r"\x1b": [r"\x07"]}


def test_evidence_arrives_as_it_was_sent() -> None:
    ramp = np.arange(24, dtype=np.float32).reshape(4, 3, 2, 1)
    latent = ramp.reshape(3, 4, 2)
    sent = Evidence("w", latent, None, ramp, ramp[:0], "ddpm, 5 steps", latent + 1)
    payload = bytearray()
    wire.send_report(Report.model_construct(evidence=[sent]), payload.extend)
    found = wire.read_evidence(next(data for kind, data in wire.frames(payload) if kind == wire.ARRAYS))
    for field in dataclasses.fields(Evidence):
        assert np.array_equal(getattr(found, field.name), getattr(sent, field.name))  # None is None
