"""The process that scans: the same answer, fewer powers, and an end."""

from __future__ import annotations

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
from backdrift.core.results import Report
from backdrift.io.errors import CheckpointError
from backdrift.isolation import parent, seccomp
from backdrift.isolation.limits import GIB, Limits, environment, import_path
from tiny import tiny_checkpoint

QUICK: dict[str, Any] = {"budget": "quick", "detector": "elijah"}
OTHER = {"started", "finished", "seconds", "limits"}


FILTERS = platform.machine() in seccomp._TABLES and os.path.exists("/proc/sys/kernel/seccomp/actions_avail")
"""Whether this kernel has system call filters, by its own word: where it does, one must hold."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("isolated") / "model")


def test_packages_that_a_scan_does_not_need_are_not_imported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dill, which torch imports where it is, opens a file for writing; others may be broken."""
    writes = "import os\nopen(os.devnull, 'w')\nraise OSError\n"
    for name in ("dill", "transformers", "peft", "torchvision"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(writes)
        about = tmp_path / f"{name}-99.0.dist-info" / "METADATA"
        about.parent.mkdir()
        about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert backdrift.scan_isolated(model, **QUICK).exit_code in (0, 1, 2)
    (tmp_path / "accelerate.py").write_text(writes)  # needed
    with pytest.raises(CheckpointError, match=r"a package does as it is imported.*--in-process") as caught:
        backdrift.scan_isolated(model, **QUICK)
    assert (caught.value.exit_code, caught.value.rule) == (2, "BD005")


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
    assert {k: v for k, v in here.items() if k in apart} == {k: v for k, v in apart.items() if k in here}
    assert here.keys() - apart.keys() == {"converted", "keep"}
    assert apart.keys() - here.keys() == {"limits", "allow_pickle"}


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    boot = (
        "import json, sys, os, time; job = json.loads(sys.stdin.buffer.readline()); "
        "sys.path[:] = job['sys_path']; from backdrift.isolation.child import _die_with_parent as d; d(); "
        f"open({str(pid)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(60)"
    )
    code = (
        "from backdrift.isolation import parent, process; "
        f"process._BOOT = {boot!r}; parent.scan_isolated('x')"
    )

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
