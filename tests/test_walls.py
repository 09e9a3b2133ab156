"""What is never imported: the attack by a defender, torch by those who only ask for help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import backdrift
from backdrift.core import registry
from tiny import tiny_checkpoint

SCAN = """
import sys
from importlib.abc import MetaPathFinder

class Wall(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("backdrift.attacks", "backdrift.groundtruth")):
            raise ImportError(f"{name} is behind the wall")

sys.meta_path.insert(0, Wall())
from backdrift.cli.main import call
code = call(sys.argv[1:])
seen = [n for n in sys.modules if n.startswith(("backdrift.attacks", "backdrift.groundtruth"))]
assert seen == [], seen
try:
    import backdrift.attacks.baddiffusion
except ImportError:
    sys.exit(code)
sys.exit("the wall has a hole")
"""


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "detector",
    [
        pytest.param(name, marks=() if name == "backdrift" else pytest.mark.slow)
        for name in registry.available("detection")
    ],
)
def test_a_scan_works_without_attacks_and_ground_truth(tmp_path: Path, detector: str) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    (model / "backdoor.json").write_text("not even JSON")
    arguments = ("--budget", "quick", "--detector", detector, "--format", "json", "--in-process")
    done = python(SCAN, "scan", model, *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["reports"][0]
    assert report["verdict"] == "NO EVIDENCE"
    assert report["subject"]["declared"] is True
    assert report["findings"][0]["detector"] == detector


HEAVY = (
    "torch",
    "diffusers",
    "numpy",
    "sklearn",
    "matplotlib",
    "accelerate",
    "safetensors",
    "torchmetrics",
)


@pytest.mark.parametrize(
    "code",
    [
        "import backdrift; assert backdrift.__version__; dir(backdrift)",
        "from backdrift.cli.main import call; assert call(['--help']) == 0",
        "from backdrift.cli.main import call; assert call(['scan', '--help']) == 0",
        "from backdrift.cli.main import call; assert call(['evaluate', '--help']) == 0",
        "from backdrift.cli.main import call; assert call(['restore', '--help']) == 0",
        "from backdrift.cli.main import call; assert call(['--version']) == 0",
        "from backdrift.cli.main import call; assert call(['list']) == 0",
        "from backdrift.cli.main import call; assert call(['rules']) == 0",
        "from backdrift.cli.main import call; assert call(['explain', 'BD001']) == 0",
        "from backdrift.cli.main import call; assert call(['baseline', '--help']) == 0",
        "from backdrift.cli._checks import CHECKS, packages; list(packages())",
        "from backdrift.cli.main import call; assert call(['scan', '--no-such-option']) == 4",
        "from backdrift.core.rules import RULES; assert RULES",
    ],
)
def test_what_needs_no_torch_imports_none(code: str) -> None:
    ending = f"\nimport sys\nprint('LOADED', *(n for n in {HEAVY!r} if n in sys.modules))"
    done = python(code + ending)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_reports_and_plans_need_no_torch() -> None:
    names = "backdrift.report.formats, backdrift.io.plan, backdrift.isolation.parent"
    schema = "from backdrift.cli.main import call; assert call(['schema']) == 0"
    done = python(f"import {names}, sys; {schema}; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_a_scanner_needs_no_torchmetrics() -> None:
    """A broken torchvision beside torch breaks its import, and must not break a scan."""
    done = python("import backdrift.scanner, backdrift.detection.backdrift as d, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert "backdrift.metrics.rates" in done.stdout.split()
    assert "torchmetrics" not in done.stdout.split()


def test_help_is_there_in_half_a_second() -> None:
    """Of CPU time: beside other tests the clock on the wall says more about them."""
    command = [str(Path(sys.executable).with_name("backdrift")), "--help"]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    assert "scan" in done.stdout
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


def test_the_public_api_is_what_it_names() -> None:
    for name in backdrift.__all__:
        assert getattr(backdrift, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'oracle'"):
        _ = backdrift.oracle
