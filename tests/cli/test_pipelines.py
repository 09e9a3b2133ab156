"""Commands in a pipeline: full disks, closed pipes, signals, terminals. All of it for real."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import backdrift
from backdrift.cli.main import call
from tiny import tiny_checkpoint

BACKDRIFT = [sys.executable, "-m", "backdrift"]
SCAN = [*BACKDRIFT, "scan", "--budget", "quick", "--detector", "purediffusion"]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full and tmpfs")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command whose scan is done: every run of it renders and writes the same report in a second."""
    root = tmp_path_factory.mktemp("pipelines")
    command = [*SCAN, str(tiny_checkpoint(root / "model")), "--resume", str(root / "kept")]
    assert call([*command[len(BACKDRIFT) :], "--in-process", "-q"]) == 0
    return command


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        command, text=True, check=False, env=environment, **{"capture_output": True, **options}
    )


def one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if "taken from" not in line]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("backdrift: ")
    for word in words:
        assert word in lines[0]


@LINUX
def test_standard_output_on_a_full_disk(scanned: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run(scanned, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    one_line(done, 2, "standard output", "No space left", "exit code 0")


@LINUX
@pytest.mark.parametrize("command", [["rules"], ["schema"], ["list"], ["--help"]])
def test_other_commands_on_a_full_disk(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run([*BACKDRIFT, *command], capture_output=False, stdout=full, stderr=subprocess.PIPE)
    one_line(done, 2, "No space left")


@pytest.mark.parametrize("command", ["schema", "--help"])
def test_other_commands_without_an_output(command: str) -> None:
    one_line(run(["sh", "-c", '"$@" >&-', "sh", *BACKDRIFT, command]), 2, "standard output", "closed")


def test_a_reader_that_has_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run([*BACKDRIFT, "schema"], capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    one_line(done, 2, "standard output")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_reader_of_a_scan_that_has_gone(scanned: list[str], format: str) -> None:
    done = run(["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "bash", *scanned, "--format", format])
    one_line(done, 2, "standard output", "Broken pipe", "exit code 0")


@LINUX
@pytest.mark.slow
def test_a_reader_that_takes_one_line(scanned: list[str]) -> None:
    """As ``| head -1``, with a pipe so small that the rest is still on its way."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    command = [*scanned, "--format", "html"]
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True) as running:
        os.close(writing)
        assert os.read(reading, 100).startswith(b"<!doctype html>\n")
        os.close(reading)
        _, err = running.communicate(timeout=60)
    one_line(subprocess.CompletedProcess(command, running.returncode, "", err), 2, "Broken pipe")


@pytest.mark.slow
def test_standard_output_that_was_never_open(scanned: list[str]) -> None:
    done = run(["sh", "-c", '"$@" >&-', "sh", *scanned])
    one_line(done, 2, "standard output", "closed")
    done = run(["sh", "-c", '"$@" >&- 2>&-', "sh", *scanned, "-q"])
    assert done.returncode == 0


@pytest.mark.parametrize(
    "words", [["evaluate", "MODEL", "--samples", "20", "--steps", "2"], ["explain", "no"]]
)
def test_standard_error_that_was_never_open(tmp_path: Path, words: list[str]) -> None:
    """Progress and complaints are lost, and nothing else is."""
    model = str(Path(backdrift.__file__).with_name("models") / "backdoored")
    command = [*BACKDRIFT, *(model if word == "MODEL" else word for word in words)]
    usual, deaf = run(command), run(["sh", "-c", '"$@" 2>&-', "sh", *command])
    assert (deaf.returncode, deaf.stderr) == (usual.returncode, "")
    assert deaf.stdout.split("\n")[:-2] == usual.stdout.split("\n")[:-2]  # the last line has the seconds
    assert bool(deaf.stdout) == (words[0] == "evaluate")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or run([mount, "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        yield place
    finally:
        run(["umount", "-l", str(place)])


@LINUX
def test_a_disk_that_fills_up(scanned: list[str], small_disk: Path, tmp_path: Path) -> None:
    """Pages and evidence do not fit, the JSON elsewhere does: a line each, and the older page stays."""
    page, older, data = small_disk / "r.html", small_disk / "older.html", tmp_path / "r.json"
    older.write_text("an older report")
    (small_disk / "filler").write_bytes(b"\0" * 5_000)
    places = [f"--format=html={page}", f"--format=html={older}", f"--format=json={data}"]
    done = run([*scanned, "-q", *places, "--evidence", str(small_disk / "evidence")])
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    for line, place in zip(lines, (page, older, small_disk / "evidence"), strict=True):
        assert line.startswith(f"backdrift: cannot write {place}: No space left")
    assert json.loads(data.read_text())["exit_code"] == 0
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "older.html"]
    assert older.read_text() == "an older report"


@LINUX
def test_a_read_only_output_is_found_before_the_work(small_disk: Path, tmp_path: Path) -> None:
    assert run(["mount", "-o", "remount,ro", str(small_disk)]).returncode == 0
    for output in (["--format", f"json={small_disk / 'r.json'}"], ["--evidence", str(small_disk / "e")]):
        done = run([*SCAN, str(tmp_path / "nowhere"), *output])
        one_line(done, 4, str(small_disk), "Read-only file system")


@pytest.mark.slow
def test_a_limit_on_file_sizes(scanned: list[str], tmp_path: Path) -> None:
    """As a quota would: SIGXFSZ is ignored by Python, and the write fails."""
    page = tmp_path / "r.html"
    done = run(
        [*scanned, "-q", "--format", f"html={page}"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    one_line(done, 2, str(page), "File too large")
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_files_writes_what_it_can(tmp_path: Path) -> None:
    """As a scan does: the SARIF with its rules is too large, the JSON after it is not."""
    model = tiny_checkpoint(tmp_path / "model")
    places = [f"--format={name}={tmp_path / name}" for name in ("sarif", "json")]
    done = run(
        [*BACKDRIFT, "scan", "-q", "--static-only", str(model), *places],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    one_line(done, 2, "sarif", "File too large", "exit code 0")
    assert json.loads((tmp_path / "json").read_text())["exit_code"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["json", "model"]


@pytest.mark.slow
def test_devices_and_pipes_are_written_to_and_not_replaced(scanned: list[str], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE, text=True) as reader:
        done = run([*scanned, "-q", "--format", f"json={fifo}"])
        assert done.returncode == 0, done.stderr
        assert reader.stdout is not None
        assert json.loads(reader.stdout.read())["exit_code"] == 0
    assert fifo.is_fifo()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_in_the_middle(tmp_path: Path, number: int, code: int, word: str) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    report = tmp_path / "r.json"
    command = [*SCAN[:-2], str(model), "--budget", "deep", "--format", f"json={report}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline().startswith("model: ")  # the first line of its progress
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert out == ""
    assert err.splitlines()[-1] == f"backdrift: {word}"
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL during the second of two models: the first is not scanned again."""
    for name in ("a", "b"):
        tiny_checkpoint(tmp_path / "models" / name, seed=ord(name))
    command = [*SCAN, "-r", str(tmp_path / "models"), "--resume", str(tmp_path / "kept")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("b: "):
                break
        running.kill()
    assert len(list((tmp_path / "kept").iterdir())) == 1
    done = run([*command, "--format", "json"])
    assert done.returncode == 0
    assert done.stderr.count("taken from") == 1
    assert f"{tmp_path / 'models' / 'a'}: taken from" in done.stderr
    assert len(json.loads(done.stdout)["reports"]) == 2


@pytest.mark.slow
def test_no_terminal_no_colour_no_letters(scanned: list[str]) -> None:
    done = run(scanned, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    ascii_only = run([*scanned[:-3], *scanned[-2:], str(scanned[-3])], env={"PYTHONIOENCODING": "ascii"})
    assert ascii_only.returncode == 0, ascii_only.stderr
    assert ascii_only.stdout.isascii()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_gets_colour_unless_it_says_no(
    scanned: list[str], environment: dict[str, str], colour: bool
) -> None:
    leader, follower = pty.openpty()
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **environment}
    settings.pop("NO_COLOR", None) if not environment else None
    with subprocess.Popen(
        scanned, stdin=follower, stdout=follower, stderr=subprocess.DEVNULL, env=settings
    ) as running:
        os.close(follower)
        seen = b""
        until = time.monotonic() + 60
        while time.monotonic() < until and select.select([leader], [], [], 60)[0]:
            try:
                seen += os.read(leader, 4096)
            except OSError:  # the other end has been closed
                break
        assert running.wait(60) == 0
    os.close(leader)
    assert b"NO EVIDENCE" in seen
    assert (b"\x1b[1;34m" in seen) == colour
