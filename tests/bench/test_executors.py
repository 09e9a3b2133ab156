"""Cells on a real Ray of this machine: the same results, whatever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from backdrift.bench import executors
from backdrift.cli.main import call
from backdrift.detection import purediffusion

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")

CELLS = """
import dataclasses, os, signal, sys, time
from pathlib import Path
import torch
from backdrift.bench import executors, runner
from backdrift.bench.executors import run_on_ray
from backdrift.bench.runner import Cell, Outcome, run_cells
runner.WAIT = 0.05
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0  # a worker has other arguments

def trace(folder, name):
    with (folder / "trace").open("a") as file:
        file.write(f"{name} {os.getpid()}\\n")
    return (folder / "trace").read_text().split().count(name)

def work(folder, name, kind, progress):
    times = trace(folder, name)
    print("a line of", name)
    if kind == "fail":
        raise RuntimeError("no luck")
    if kind == "slow":
        time.sleep(seconds)
    if kind == "die" or (kind == "die once" and times == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    drawn = torch.randn(4, generator=torch.Generator().manual_seed(len(name)))
    value = {"drawn": drawn.tolist(), "threads": torch.get_num_threads(), "here": os.getcwd()}
    return Outcome(resolved={}, value=value, evaluations=1)

def cells(folder, kinds):
    made = {}
    for name, (kind, needs) in kinds.items():
        job = lambda progress, name=name, kind=kind: work(folder, name, kind, progress)
        below = tuple(made[other] for other in needs)
        made[name] = Cell(name, folder / "cells" / f"{name}.json", name, {}, job, below, seed=3)
    return list(made.values())
"""

TWICE = """
folder = Path(sys.argv[1])
kinds = {
    "base": ("", ()), "left": ("", ("base",)), "right": ("", ("base",)), "bad": ("fail", ("left",)),
    "after": ("", ("bad", "right")), "shaky": ("die once", ()),
}
seen, refused = [], []
(folder / "ray").mkdir()
os.chdir(folder)
here = Path("ray")
deadly = cells(here, {"deadly": ("die", ())})
(large,) = cells(here, {"large": ("", ())})
with executors._session(None):  # one for all of this
    for changes, gpus in (({"threads": 999}, 1.0), ({"device": "cuda"}, 1.0), ({}, 1.5)):
        try:
            run_on_ray([dataclasses.replace(large, **changes)], gpus=gpus)
        except ValueError as error:
            refused.append(str(error))
    with_ray = run_on_ray([*cells(here, kinds), *deadly], progress=lambda *c: seen.append(c))
(folder / "alone").mkdir()
alone = run_cells(cells(folder / "alone", kinds | {"shaky": ("", ())}))
assert with_ray == alone | {"deadly": "failed"}, with_ray
assert all(0 <= done < total == 7 for done, total, _ in seen)
assert refused[0].startswith("large needs 999 CPUs; no node has more than "), refused
assert refused[1] == "large needs a GPU; no node has one"
assert refused[2] == "the share of a GPU lies in (0, 1], not at 1.5"
"""

SLOW = """
folder = Path(sys.argv[1])
run = run_cells if sys.argv[3] == "alone" else run_on_ray
run(cells(folder, {f"cell-{n}": ("slow", ()) for n in range(8)}))
"""


@contextmanager
def started(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A script of its own, which does not outlive the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(
        [sys.executable, "-c", CELLS + code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(code: str, *arguments: object) -> tuple[str, str]:
    """What a script printed, once it has ended well."""
    with started(code, *arguments) as script:
        out, errors = script.communicate()
    assert script.returncode == 0, errors
    return out, errors


def results(folder: Path) -> dict[str, Any]:
    """Without times and host."""
    found = {}
    for path in (folder / "cells").glob("*.json"):
        document = json.loads(path.read_text())
        for name in ("started", "seconds", "cores"):
            del document[name]
        del document["environment"]["platform"]
        found[path.stem] = document
    return found


@pytest.mark.timeout(300)
def test_the_same_results_and_deaths_that_end(tmp_path: Path) -> None:
    out, errors = run(TWICE, tmp_path)
    with_ray, alone = results(tmp_path / "ray"), results(tmp_path / "alone")
    assert out.splitlines() == [f"a line of {name}" for name in ("base", "left", "right", "bad", "shaky")]
    assert errors == ""
    assert "its worker died 3 times (WorkerCrashedError)" in with_ray.pop("deadly")["error"]
    assert with_ray == alone
    assert with_ray["base"]["value"]["here"] == str(tmp_path)
    assert (tmp_path / "ray" / "trace").read_text().split().count("shaky") == 2
    assert not [p for p in (tmp_path / "ray" / "cells").iterdir() if p.name.endswith(".new")]


def waits_for(script: subprocess.Popen[str], folder: Path, count: int) -> list[list[str]]:
    """Lines of the trace, once there are so many."""
    path, lines = folder / "trace", list[list[str]]()
    while len(lines) < count:
        assert script.poll() is None, script.communicate()
        time.sleep(0.05)
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return lines


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_workers_cost_no_result(tmp_path: Path) -> None:
    with started(SLOW, tmp_path, 1.0, "ray") as script:
        for count in (1, 4, 7):
            _, worker = waits_for(script, tmp_path, count)[-1]
            os.kill(int(worker), signal.SIGKILL)
        out, errors = script.communicate()
    assert (script.returncode, out, errors) == (0, "", "")
    alone = tmp_path / "alone"
    alone.mkdir()
    run(SLOW, alone, 0.0, "alone")
    found, wanted = results(tmp_path), results(alone)
    assert len(found) == 8
    assert {v["status"] for v in found.values()} == {"done"}
    for name, result in found.items():
        assert result["value"]["drawn"] == wanted[name]["value"]["drawn"]


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_a_killed_driver_goes_on_beside_a_runner_of_the_other_kind(tmp_path: Path) -> None:
    with started(SLOW, tmp_path, 1.0, "ray") as first:
        workers = {int(pid) for _, pid in waits_for(first, tmp_path, 3)}
        first.kill()
        while any(alive(pid) for pid in workers):
            time.sleep(0.1)
    before, count = set(results(tmp_path)), len((tmp_path / "trace").read_text().splitlines())
    assert len(before) < 8
    with started(SLOW, tmp_path, 1.0, "ray") as ray, started(SLOW, tmp_path, 1.0, "alone") as alone:
        for runner in (ray, alone):
            _, errors = runner.communicate()
            assert (runner.returncode, errors) == (0, "")
    again = [line.split()[0] for line in (tmp_path / "trace").read_text().splitlines()[count:]]
    assert sorted(again) == sorted({f"cell-{n}" for n in range(8)} - before)


BENCH = """
import sys
from pathlib import Path
from backdrift.bench import _planting, zoo
from backdrift.bench.tasks import Opened, load_bench, run_bench
from backdrift.detection import purediffusion
zoo.UTILITY, _planting.SAMPLES, _planting.STEPS = (32, 3), 32, 4
purediffusion.STEPS["quick"] = 1
folder = Path(sys.argv[1])
suite, population = load_bench("smoke")
folder.with_suffix(".begun").touch()
small = suite.model_copy(update={"tasks": {k: v for k, v in suite.tasks.items() if k != "backdrift"}})
run_bench(Opened(suite=small, zoo=population, models="zoo"), folder)
"""


def begun(script: subprocess.Popen[str], folder: Path) -> float:
    """The moment when a run has imported everything and begins."""
    sign = folder.with_suffix(".begun")
    while not sign.exists():
        assert script.poll() is None, script.communicate()
        time.sleep(0.02)
    sign.unlink()
    return time.monotonic()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_ten_times_the_table_is_that_of_a_run_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(purediffusion.STEPS, "quick", 1)  # as the script has it: settings are an address
    killed, peace, moments = tmp_path / "killed", tmp_path / "peace", random.Random(7)
    with started(BENCH, peace) as script:
        first = begun(script, peace)
        _, errors = script.communicate()
    assert script.returncode == 0, errors
    work, struck = time.monotonic() - first, 0
    for _ in range(10):
        with started(BENCH, killed) as script:
            begun(script, killed)
            time.sleep(moments.uniform(0, 0.2) * work)
            struck += script.poll() is None
            script.kill()
    assert struck >= 8
    run(BENCH, killed)
    rows = []
    for folder in (killed, peace):
        file = tmp_path / f"{folder.name}.csv"
        assert call(["bench", "table", str(folder), "--format", "csv", "-o", str(file)]) == 0
        rows.append([line for line in file.read_text().splitlines() if ",seconds," not in line])
    assert rows[0] == rows[1]
    assert len(rows[0]) > 20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_asked_to_end_it_says_so_and_leaves_no_ray(
    tmp_path: Path, number: int, code: int, word: str
) -> None:
    command = [sys.executable, "-m", "backdrift", "bench", "run", "smoke", "--executor", "ray", "-o", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline().startswith("smoke: 0/7, ")
        below = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors.splitlines()[-1]) == (code, f"backdrift: {word}")
    assert "Traceback" not in errors
    assert len(below) > 1
    assert not any(alive(int(pid)) for pid in below)
    assert not list((tmp_path / "out" / "zoo").glob("*.json"))


def test_without_ray_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code = call(["bench", "run", "smoke", "-o", str(tmp_path / "out"), "--executor", "ray"])
    out, errors = capfd.readouterr()
    assert (code, out) == (4, "")
    assert errors == 'backdrift: the executor ray needs an extra: pip install "backdrift[ray]"\n'


def test_a_node_of_another_version_or_without_the_files_is_named(tmp_path: Path) -> None:
    version, missing = metadata.version("backdrift"), tmp_path / "no"
    assert executors._look("0.0", []) == f"it has backdrift {version}, not 0.0"
    assert executors._look(version, [str(tmp_path)]) == ""
    look = executors._look(version, [str(tmp_path), str(missing)])
    assert look == f"it does not see {missing}: nodes must share their files"
