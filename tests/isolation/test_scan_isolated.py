"""The process that scans: the same answer, fewer powers, and an end."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backdrift
from backdrift.core.results import Evidence, Report
from backdrift.io.errors import CheckpointError
from backdrift.isolation import parent, seccomp, wire
from backdrift.isolation.limits import GIB, Limits, environment, import_path
from tiny import tiny_checkpoint

QUICK: dict[str, Any] = {"budget": "quick", "detector": "elijah"}
OTHER = {"started", "finished", "seconds", "limits"}


FILTERS = platform.machine() in seccomp._TABLES and os.path.exists("/proc/sys/kernel/seccomp/actions_avail")
"""Whether this kernel has system call filters, by its own word: where it does, one must hold."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("isolated") / "model")


def comparable(report: Report) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in OTHER}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(json.loads(report.model_dump_json()))


def test_the_same_report_and_the_same_evidence(model: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    apart = backdrift.scan_isolated(
        model, **QUICK, command="x", progress=lambda done, total, text: seen.append((done, total, text))
    )
    here = backdrift.scan(model, **QUICK, command="x")
    assert comparable(apart) == comparable(here)
    assert seen
    names = {limit.name for limit in apart.limits}
    assert names >= {"wall clock", "memory", "network", "programs", "files"}
    assert apart.environment.threads == torch.get_num_threads() == 1
    assert here.limits == []
    assert len(apart.evidence) == len(here.evidence) == 1
    for mine, theirs in zip(apart.evidence, here.evidence, strict=True):
        assert (mine.weights, mine.sampler) == (theirs.weights, theirs.sampler)
        for name in ("trigger", "target", "clean_samples", "triggered_samples", "scale"):
            a, b = getattr(mine, name), getattr(theirs, name)
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == np.float32 and np.array_equal(a, b, equal_nan=True))


def test_refusals_come_back_with_code_and_rule(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        backdrift.scan_isolated(tmp_path / "absent")
    assert (caught.value.exit_code, caught.value.rule) == (4, "BD111")
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not strict JSON") as caught:
        backdrift.scan_isolated(broken)
    assert (caught.value.exit_code, caught.value.rule) == (2, "BD201")


def test_a_scan_that_takes_too_long_is_ended(model: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=r"longer than 0\.3 s") as caught:
        backdrift.scan_isolated(model, limits=Limits(seconds=0.3))
    assert caught.value.rule == "BD006"
    assert time.monotonic() - begun < 20


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_a_scan_that_needs_too_much_memory_says_so(model: Path) -> None:
    with pytest.raises(CheckpointError, match="more memory") as caught:
        backdrift.scan_isolated(model, limits=Limits(memory=GIB // 8))
    assert (caught.value.exit_code, caught.value.rule) == (2, "BD007")


def run_in_child(code: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a process that is limited as one that scans."""
    before = (
        "from backdrift.isolation import limits\n"
        "held = {x.name: x.held for x in limits.apply(None, 60, 'cpu')}\n"
        "def refused(f, *a):\n"
        "    try: f(*a)\n"
        "    except PermissionError: return\n"
        "    raise SystemExit(f'{f} {a} works')\n"
        "import os, socket, subprocess, pickle, threading, ctypes\n"
    )
    return subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, text=True, timeout=60, check=False
    )


def test_powers_are_gone_in_python() -> None:
    code = """
refused(subprocess.run, ["/bin/true"])
refused(os.system, "true")
refused(os.fork)
refused(os.execv, "/bin/true", ["true"])
refused(socket.create_connection, ("127.0.0.1", 9))
refused(pickle.loads, b"cos\\nsystem\\n.")
"""
    done = run_in_child(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of the Linux kernel")
def test_powers_are_gone_in_the_kernel(tmp_path: Path) -> None:
    """Called through libc: no hook of Python sees it."""
    (tmp_path / "there").write_text("x")
    (tmp_path / "link").symlink_to("there")
    code = f"""
if not held["network"]:
    raise SystemExit(77)
libc = ctypes.CDLL(None, use_errno=True)
def gone(name, *a):
    r = getattr(libc, name)(*a)
    if r != -1 or ctypes.get_errno() != 1:
        raise SystemExit(f"{{name}} {{a}} gave {{r}} {{ctypes.get_errno()}}")
root = {str(tmp_path)!r}.encode()
gone("socket", 2, 1, 0); gone("socket", 1, 1, 0); gone("fork"); gone("vfork")
gone("execv", b"/bin/true", None); gone("kill", os.getppid(), 0)
gone("open", root + b"/new", os.O_WRONLY | os.O_CREAT, 0o600); gone("creat", root + b"/new", 0o600)
gone("open", root + b"/there", os.O_RDWR); gone("unlink", root + b"/there")
gone("truncate", root + b"/there", 0); gone("link", root + b"/there", root + b"/h")
gone("rename", root + b"/there", root + b"/other"); gone("mkdir", root + b"/d", 0o700)
gone("chmod", root + b"/there", 0); gone("symlink", b"a", root + b"/l")
gone("utimes", root + b"/there", None); gone("prlimit", os.getppid(), 7, None, None)
gone("tgkill", os.getppid(), os.getppid(), 0); gone("sigqueue", os.getppid(), 0, None)
for own in (0, os.getpid()):
    assert libc.prlimit(own, 7, None, None) == 0
assert getattr(libc, "raise")(0) == 0
assert open(root + b"/there").read() == "x"
ran = []
threading.Thread(target=lambda: ran.append(1)).start()
while not ran: pass
"""
    done = run_in_child(code)
    if done.returncode == 77 and not FILTERS:
        pytest.skip("a kernel without filters")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]


def test_the_child_gets_no_secrets_and_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = environment()
    assert "secret" not in found.values()
    assert (found["OMP_NUM_THREADS"], found["HF_HUB_OFFLINE"]) == ("1", "1")


def test_modules_are_not_looked_for_in_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(model)
    monkeypatch.setattr(sys, "path", ["", str(model / "unet"), str(tmp_path), *sys.path])
    found = import_path(str(model))
    assert not [p for p in found if p.startswith(str(model))]
    assert str(tmp_path) in found
    assert str(Path(backdrift.__file__).parents[1]) in found


def test_a_python_in_the_model_and_a_model_in_a_python(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``scan .`` beside a virtual environment works; a model in a prefix is no part of that Python."""
    own = tmp_path / "venv" / "lib" / "site-packages"
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"purelib": str(own), "data": str(tmp_path)})
    inside = tmp_path / "models" / "evil"
    inside.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["", str(own), str(inside)])
    monkeypatch.chdir(inside)
    assert str(own) in import_path(str(tmp_path))
    assert not [p for p in import_path(str(inside)) if "evil" in p]


def test_no_limits_are_no_limits() -> None:
    for wrong in ({"seconds": float("nan")}, {"seconds": float("inf")}, {"seconds": 0}, {"memory": 0}):
        with pytest.raises(ValueError, match="no limits"):
            Limits(**wrong)


def test_both_ways_to_scan_take_the_same() -> None:
    def settings(function: Any) -> dict[str, Any]:
        return {name: one.default for name, one in inspect.signature(function).parameters.items()}

    here, apart = settings(backdrift.scan), settings(backdrift.scan_isolated)
    assert {k: v for k, v in here.items() if k != "converted"} == {k: apart[k] for k in here.keys() & apart}
    assert apart.keys() - here.keys() == {"limits", "allow_pickle"}


def test_an_option_may_be_a_path() -> None:
    assert wire.to_json({"calibration": Path("x") / "y"}) == b'{"calibration": "x/y"}'
    with pytest.raises(TypeError):
        wire.to_json(object())


class Child:
    """Stands in the place of the process that scans, to send what a broken one would."""

    def __init__(self, code: str) -> None:
        self.code = code

    def run(self, monkeypatch: pytest.MonkeyPatch) -> CheckpointError:
        monkeypatch.setattr(parent, "_BOOT", "import os, sys; sys.stdin.buffer.readline(); " + self.code)
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


def test_a_report_is_printable_whatever_the_child_says(model: Path) -> None:
    report = json.loads(backdrift.scan(model, **QUICK).model_dump_json())
    report["findings"][0]["reason"] = "a\x1b[2J\x9b\u202e\n"
    report["config"] = {"\x1b": ["\x07"]}
    found = wire.read_report(wire.to_json(report))
    assert found.findings[0].reason == r"a\x1b[2J\x9b\u202e\n"
    assert found.config == {r"\x1b": [r"\x07"]}


def test_evidence_arrives_as_it_was_sent() -> None:
    ramp = np.arange(24, dtype=np.float32).reshape(4, 3, 2, 1)
    latent = ramp.reshape(3, 4, 2)
    sent = Evidence("w", latent, None, ramp, ramp[:0], "ddpm, 5 steps", latent + 1)
    payload = bytearray()
    wire.send_report(Report.model_construct(evidence=[sent]), payload.extend)
    found = wire.read_evidence(next(data for kind, data in wire.frames(payload) if kind == wire.ARRAYS))
    for field in dataclasses.fields(Evidence):
        assert np.array_equal(getattr(found, field.name), getattr(sent, field.name))  # None is None


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    boot = (
        "import json, sys, os, time; job = json.loads(sys.stdin.buffer.readline()); "
        "sys.path[:] = job['sys_path']; from backdrift.isolation.child import _die_with_parent as d; d(); "
        f"open({str(pid)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(60)"
    )
    code = f"from backdrift.isolation import parent; parent._BOOT = {boot!r}; parent.scan_isolated('x')"

    def wait_for(there: Any) -> None:
        end = time.monotonic() + 30
        while not there():
            assert time.monotonic() < end
            time.sleep(0.05)

    with subprocess.Popen([sys.executable, "-c", code]) as process:
        wait_for(lambda: pid.exists() and pid.read_text().endswith("."))
        process.kill()
    wait_for(lambda: not Path("/proc", pid.read_text()[:-1]).exists())


def test_probe_says_what_holds() -> None:
    found = {limit.name: limit for limit in parent.probe()}
    assert found["wall clock"].held
    assert all(limit.detail for limit in found.values())
    if FILTERS:
        assert all(limit.held for limit in found.values())
