"""The loop over cells: nothing lost, nothing done twice, whatever strikes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backdrift.bench.runner import Cell, Outcome, address_of, run_cells, to_do_again

SCRIPT = """
import os, sys, time
from pathlib import Path
from backdrift.bench import runner
from backdrift.bench.runner import Cell, Outcome, run_cells
runner.WAIT = 0.05
folder, slow = Path(sys.argv[1]), float(sys.argv[2])
def work(number, progress):
    with (folder / "trace").open("a") as file:
        file.write(f"{number} {os.getpid()}\\n")
    time.sleep(slow)
    return Outcome(resolved={}, value={"square": number**2}, evaluations=0)
cells = [Cell(str(n), folder / "cells" / f"{n}.json", n, {}, lambda p, n=n: work(n, p)) for n in range(6)]
run_cells(cells)
"""


def cell(folder: Path, name: str, work: Callable[[], Any] = dict, **changes: Any) -> Cell:
    def outcome(progress: object) -> Outcome:
        value = work()
        return Outcome(resolved={"full": True}, value=value, evaluations=3)

    options: dict[str, Any] = {"key": name, "given": {"name": name}, **changes}
    return Cell(name, folder / f"{name}.json", work=outcome, **options)


def broken() -> dict[str, Any]:
    raise RuntimeError("no luck")


def test_a_result_says_everything_about_itself(tmp_path: Path) -> None:
    one = cell(tmp_path, "one", lambda: {"threads": torch.get_num_threads()}, seed=5, threads=1)
    assert one.result() is None
    assert run_cells([one]) == {"one": "done"}
    document = json.loads((tmp_path / "one.json").read_text())
    assert document["value"] == {"threads": 1}
    assert (document["status"], document["error"], document["seed"]) == ("done", None, 5)
    assert document["given"] == {"name": "one"}
    assert document["resolved"] == {"full": True}
    assert document["evaluations"] == 3
    assert document["environment"]["threads"] == 1
    assert document["cores"] > 0
    assert document["seconds"] >= 0
    assert document["address"] == one.address
    assert {"torch", "diffusers"} <= set(document["environment"]["versions"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", "one.json"]


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def count() -> dict[str, Any]:
        calls.append(1)
        return {}

    cells = [cell(tmp_path, "one", count), cell(tmp_path, "two", count)]
    run_cells(cells[:1])
    before = (tmp_path / "one.json").read_bytes()
    assert run_cells(cells) == {"one": "done", "two": "done"}
    assert len(calls) == 2
    assert (tmp_path / "one.json").read_bytes() == before


def chain(folder: Path, calls: list[str], kind: str) -> list[Cell]:
    """A base, two models of it, and a task on the first, which is a model too if ``kind`` says so."""

    def make(name: str) -> Callable[[], dict[str, Any]]:
        def made() -> dict[str, Any]:
            calls.append(name)
            (folder / name).mkdir()
            return {}

        return made

    def one(name: str, kind: str, *needs: Cell) -> Cell:
        return cell(folder, name, make(name), needs=needs, kind=kind, products=(folder / name,))

    base = one("base", "model")
    first, second = one("first", "model", base), one("second", "model", base)
    return [base, first, second, one("last", kind, first)]


def test_models_that_are_gone_are_made_again_only_for_who_needs_them(tmp_path: Path) -> None:
    calls: list[str] = []
    cells = chain(tmp_path, calls, "detect")
    run_cells(cells)
    assert calls == ["base", "first", "second", "last"]
    for name in calls:
        (tmp_path / name).rmdir()
    run_cells(cells)
    assert len(calls) == 4  # all results are there
    (tmp_path / "last.json").unlink()
    assert to_do_again(cells, False) == {tmp_path / "base.json", tmp_path / "first.json"}
    run_cells(cells)
    assert calls[4:] == ["base", "first", "last"]
    (tmp_path / "base").rmdir()
    (tmp_path / "last.json").unlink()
    (tmp_path / "last").rmdir()
    run_cells(cells)
    assert calls[7:] == ["last"]


def test_among_models_alone_the_last_ones_are_wanted(tmp_path: Path) -> None:
    calls: list[str] = []
    cells = chain(tmp_path, calls, "model")
    run_cells(cells)
    (tmp_path / "base").rmdir()
    (tmp_path / "second").rmdir()
    run_cells(cells)
    assert calls[4:] == ["base", "second"]
    (tmp_path / "first").rmdir()  # only "last" is made from it, and that is there
    assert not to_do_again(cells, False)


def test_a_failure_is_a_result_and_the_others_go_on(tmp_path: Path) -> None:
    bad = cell(tmp_path, "bad", broken)
    after = cell(tmp_path, "after", needs=(bad,))
    good = cell(tmp_path, "good")
    assert run_cells([bad, after, good]) == {"bad": "failed", "after": "failed", "good": "done"}
    found, result = bad.result(), after.result()
    assert found is not None
    assert result is not None
    assert found.error is not None
    assert found.error.startswith("RuntimeError: no luck (test_runner.py:")
    assert found.value == {}
    assert str(result.error).startswith("RuntimeError: needs bad, which failed")
    mended = [cell(tmp_path, "bad"), cell(tmp_path, "after", needs=(cell(tmp_path, "bad"),)), good]
    assert run_cells(mended)["bad"] == "failed"
    assert run_cells(mended, retry=True) == {"bad": "done", "after": "done", "good": "done"}


def test_two_runners_that_retry_do_it_once(tmp_path: Path) -> None:
    """The other one has done it again before this one gets there."""
    calls: list[int] = []

    def count() -> dict[str, Any]:
        calls.append(1)
        return {}

    run_cells([cell(tmp_path, "first"), cell(tmp_path, "one", broken)])
    (tmp_path / "first.json").unlink()
    cells = [
        cell(tmp_path, "first", lambda: {"other": run_cells([cell(tmp_path, "one", count)], retry=True)}),
        cell(tmp_path, "one", count),
    ]
    assert run_cells(cells, retry=True)["one"] == "done"
    assert len(calls) == 1


def test_only_models_are_made_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    cells = [cell(tmp_path, "model", device="any"), cell(tmp_path, "detect")]
    run_cells(cells)
    found = [one.result() for one in cells]
    assert [one.environment.device for one in found if one] == ["a GPU", "cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_fails_without_one(tmp_path: Path) -> None:
    one = cell(tmp_path, "one", device="cuda")
    assert run_cells([one]) == {"one": "failed"}
    assert "there is no GPU here" in (tmp_path / "one.json").read_text()


def test_an_interrupt_leaves_no_result_of_its_cell(tmp_path: Path) -> None:
    def interrupt() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells([cell(tmp_path, "one"), cell(tmp_path, "two", interrupt)])
    assert (tmp_path / "one.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", "one.json"]
    assert run_cells([cell(tmp_path, "one"), cell(tmp_path, "two")]) == {"one": "done", "two": "done"}


@pytest.mark.parametrize("change", [{"key": "other"}, {"seed": 1}, {"threads": 2}])
def test_another_content_under_the_same_name_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run_cells([cell(tmp_path, "one")])
    with pytest.raises(ValueError, match="other settings"):
        run_cells([cell(tmp_path, "one", **change)])


def test_an_address_does_not_depend_on_the_order_of_keys() -> None:
    assert address_of({"a": 1, "b": [2]}) == address_of({"b": [2], "a": 1})
    assert address_of({"a": 1}) != address_of({"a": 2})
    assert len(address_of(None)) == 64


def start(folder: Path, slow: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(slow)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


def trace(folder: Path) -> list[list[str]]:
    path = folder / "trace"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def squares(folder: Path) -> dict[int, int]:
    found = {}
    for path in (folder / "cells").glob("*.json"):
        found[int(path.stem)] = json.loads(path.read_text())["value"]["square"]
    return found


def test_killed_and_run_again_by_two_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    first = start(tmp_path, 0.5)
    deadline = time.monotonic() + 90
    while len(trace(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = squares(tmp_path)
    assert 2 <= len(done) < 6
    runners = [start(tmp_path, 0.3), start(tmp_path, 0.3)]
    for runner in runners:
        _, errors = runner.communicate(timeout=120)
        assert runner.returncode == 0, errors
    assert squares(tmp_path) == {n: n * n for n in range(6)}
    again = sorted(int(number) for number, pid in trace(tmp_path) if pid != str(first.pid))
    assert again == [n for n in range(6) if n not in done]  # the rest, each once
    assert not [p for p in (tmp_path / "cells").iterdir() if p.name.endswith(".new")]
