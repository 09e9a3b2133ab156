"""Methods of other packages: found by entry point, refused by name, held to the same contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backdrift.core.registry import available, build, plugin
from tiny import SHAPE, tiny_checkpoint, tiny_model

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "random-shift"
METHOD = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    size: int = 3

class Loose:
    pass
"""


def install(place: Path, name: str, entries: str, summary: str = "Summary: Mine alone.\n") -> None:
    """What pip leaves of a package: its metadata, and a module that may be missing."""
    info = place / f"{name}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{summary}")
    (info / "entry_points.txt").write_text(f"[backdrift.detection]\n{entries}\n")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine_module.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_module", raising=False)
    return tmp_path


def test_a_method_of_another_package_is_one_of_ours(place: Path) -> None:
    install(place, "other", "my-method = mine_module:Mine")
    install(place, "silent", "bare = mine_module:Mine", summary="")
    found = available("detection")
    assert found["my_method"] == "Mine alone. (other 1.5)"
    assert found["bare"] == "No summary. (silent 1.5)"
    assert "mine_module" not in sys.modules
    assert list(found) == sorted(found)
    assert plugin("detection", "my-method").__name__ == "Mine"
    assert build("detection", "my_method", {"size": "5"}).size == 5
    assert "my_method" not in available("inversion")
    with pytest.raises(ValueError, match="did you mean my_method"):
        plugin("detection", "my_methd")


def test_a_name_is_not_taken_from_us_or_one_another(place: Path) -> None:
    install(place, "thief", "elijah = mine_module:Mine")
    assert plugin("detection", "elijah").__module__ == "backdrift.detection.elijah"
    with pytest.raises(ValueError, match=r"thief 1\.5 and backdrift both have a detection plug-in"):
        available("detection")
    shutil.rmtree(place / "thief-1.5.dist-info")
    install(place, "one", "same = mine_module:Mine")
    install(place, "two", "same = mine_module:Mine")
    with pytest.raises(ValueError, match="both have a detection plug-in 'same': uninstall one"):
        plugin("detection", "same")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:Mine", "cannot be imported: ModuleNotFoundError"),
        ("mine_module:Absent", "cannot be imported: AttributeError"),
        ("mine_module:Loose", "mine_module:Loose of bad 1.5 is no frozen dataclass"),
    ],
)
def test_what_cannot_be_used_is_named(place: Path, value: str, words: str) -> None:
    install(place, "bad", f"broken = {value}")
    assert "broken" in available("detection")
    with pytest.raises(ValueError, match=words):
        plugin("detection", "broken")


def test_the_example_is_short() -> None:
    (module,) = EXAMPLE.glob("*.py")
    assert len(module.read_text().splitlines()) <= 40


def test_the_example_gives_a_finding(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(place, "example", "random_shift = backdrift_random_shift:RandomShift")
    monkeypatch.syspath_prepend(EXAMPLE)
    detector = build("detection", "random-shift", {"budget": "quick"})
    stages: list[str] = []
    found = detector(tiny_model(blocks=1), seed=0, keep=lambda stage, _: stages.append(stage))
    assert found.finding.detector == "random_shift"
    assert 0 < found.finding.evaluations <= detector.most_evaluations()
    assert found.evidence.trigger.shape == SHAPE
    assert stages[0] == "inversion"
    assert stages[-1].startswith("null: ")


BENCH = """
description = "a method of another package"
zoo = "smoke"
[tasks.theirs]
kind = "detect"
method = "random_shift"
options = { budget = "quick" }
models = ["clean"]
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_in_commands_contract_and_benchmarks(tmp_path: Path) -> None:
    """Really built and installed, into a folder of its own."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-index"]
    source = shutil.copytree(EXAMPLE, tmp_path / "source")  # a build may leave files
    target = ["--no-deps", "--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run([*pip, *target], check=True, timeout=300)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "random_shift     Judges the random shift" in run("backdrift", "list")
    model = tiny_checkpoint(tmp_path / "model")
    found = run("backdrift", "detect", "random-shift", model, "--budget", "quick")
    assert '"detector": "random_shift"' in found
    own = tmp_path / "own.toml"
    own.write_text(BENCH)
    run("backdrift", "bench", "run", own, "-o", tmp_path / "out", "-q")
    assert "| theirs | clean | 1 |" in run("backdrift", "bench", "table", tmp_path / "out")
    tests = ["tests/detection/test_contract.py", "-k", "random_shift", "-q", "-p", "no:cacheprovider"]
    assert "passed" in run("pytest", *tests)
