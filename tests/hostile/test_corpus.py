"""Hostile folders and mutated files: a documented exit code, one line, and no payload runs."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from backdrift.cli.main import app
from backdrift.io.plan import plan
from hostile.attempt import attempt, built, open_it
from hostile.corpus import BIN, WEIGHTS, Case, cases
from hostile.mutate import Mutator
from hostile.pickles import archive, payloads
from tiny import tiny_checkpoint

CASES = cases()
QUICK = ("--budget", "quick", "--detector", "purediffusion", "-q")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("good") / "model")


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 200
    assert {case.advisory for case in CASES} > {""}


@pytest.mark.parametrize(
    "name", [n for n in payloads(Path("/m")) if n not in ("import", "torch.hub", "truncated")]
)
def test_the_payloads_are_live(name: str, tmp_path: Path) -> None:
    """Else it would say nothing that they do not run."""
    marker = tmp_path / "marker"
    marker.with_suffix(".py").write_text(f"open({str(marker)!r}, 'w')\n")
    data = payloads(marker)[name]
    code = f"import pickle; pickle.loads({data!r})"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert marker.exists()


def test_a_truncated_payload_is_no_pickle(tmp_path: Path) -> None:
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        pickle.loads(payloads(tmp_path)["truncated"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_look_at_a_hostile_folder(case: Case, good: Path, tmp_path: Path) -> None:
    with built(case, good, tmp_path) as (folder, marker):
        seen = attempt(marker, "scan", folder, "--static-only")
        assert seen.problems() == []
        assert seen.code in case.codes, seen.err
        assert seen.seconds < 20


@pytest.mark.parametrize("name", ["only-os.system-zip", "only-protocol-0-raw", "archive-storage"])
def test_pickle_payloads_do_not_run_when_pickle_is_allowed(name: str, good: Path, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    with built(case, good, tmp_path) as (folder, marker):
        seen = attempt(marker, "scan", folder, *QUICK, "--allow-pickle")
        assert seen.problems() == []
        assert seen.code in (2, 3), seen.err


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.refused], ids=lambda case: case.name)
def test_a_scan_of_a_hostile_folder(case: Case, good: Path, tmp_path: Path) -> None:
    with built(case, good, tmp_path) as (folder, marker):
        for more in [(), ("--allow-pickle",)] if case.pickle else [()]:
            seen = attempt(marker, "scan", folder, *QUICK, "--timeout", 100, *more)
            assert seen.problems() == []
            assert seen.code in (*case.codes, 2), seen.err


def test_mutated_files(good: Path, tmp_path: Path) -> None:
    """Refused with one line, or planned and then loaded or refused; never anything else."""
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    mutator = Mutator(folder, seed=0)
    codes: set[int] = set()
    for number in range(300):
        kind = mutator.write()
        code, message, seconds = open_it(folder)
        assert message.isprintable(), (number, kind)
        assert seconds < 10, (number, kind)
        codes.add(code)
        mutator.restore()
    assert {0, 2, 3} <= codes <= {0, 2, 3, 4}
    plan(folder)


COMMANDS: dict[str, tuple[Any, ...]] = {
    "repair": ("repair", "unlearn", "MODEL", "--evidence", "OUT", "-o", "OUT/repaired"),
    "amplify": ("amplify", "MODEL", "--backdoor", "MODEL/backdoor.json", "-o", "OUT/amplified"),
    "calibrate": ("calibrate", "--models", "MODEL/..", "--budget", "quick", "-o", "OUT/own.json"),
    "scan": ("scan", "MODEL", *QUICK, "--in-process"),
    "detect": ("detect", "purediffusion", "MODEL", "--budget", "quick", "--in-process"),
    "invert": ("invert", "elijah", "MODEL", "-P", "steps=1", "-P", "noises=2"),
    "sample": ("sample", "MODEL", "-o", "OUT/grid.png", "--steps", "2", "-n", "2"),
    "evaluate": ("evaluate", "MODEL"),
    "restore": ("restore", "MODEL", "--task", "inpaint-box", "-o", "OUT/r.png", "--steps", "2"),
    "declare": ("declare", "MODEL", "--trigger", "stop-sign", "--target", "hat", "-o", "OUT/record"),
    "attack": (
        "attack",
        "baddiffusion",
        "--base",
        "MODEL",
        "--data",
        "digits",
        "-o",
        "OUT/a",
        "--steps",
        "1",
    ),
}
"""Every command that takes a model somebody else made."""
WITHOUT_MODEL = {
    "baseline",
    "bench",
    "demo",
    "doctor",
    "explain",
    "list",
    "rules",
    "schema",
    "train",
    "zoo",
}


def test_no_command_is_forgotten() -> None:
    names = {command.name for command in app.registered_commands}
    names |= {group.name for group in app.registered_groups}
    assert names - WITHOUT_MODEL == set(COMMANDS)


@pytest.mark.parametrize("form", ["only", "beside"])
@pytest.mark.parametrize("name", list(COMMANDS))
def test_no_payload_runs_over_any_command(
    name: str, form: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payloads as weights, or in every other place beside good weights."""
    marker, folder = tmp_path / "marker", Path(shutil.copytree(good, tmp_path / "model"))
    hostile = payloads(marker)["os.system"]
    (folder / BIN).write_bytes(archive(hostile))
    for file in ("backdoor.json", "optimizer.bin", "model.pkl", "unet/model.ckpt", "README.md"):
        (folder / file).write_bytes(hostile)
    for file in ("unet/unet.py", "pipeline.py", "torch.py", "diffusers.py", "sitecustomize.py"):
        (folder / file).write_text(f"open({str(marker)!r}, 'w')\n")
    if form == "only":
        (folder / WEIGHTS).unlink()
    monkeypatch.chdir(folder)
    (tmp_path / "out").mkdir()
    words = [w.replace("MODEL", str(folder)).replace("OUT", str(tmp_path / "out")) for w in COMMANDS[name]]
    before = torch.get_rng_state()
    seen = attempt(marker, *words)
    torch.set_rng_state(before)
    assert not seen.marked
    assert "Traceback" not in seen.err
    assert seen.code in ((2, 3, 4) if form == "only" and name != "declare" else (0, 2, 3, 4)), seen.err
