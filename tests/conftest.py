"""One thread for every test: the same bytes everywhere, and no fight over cores."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tiny import tiny_latent_checkpoint

GOLDEN = Path(__file__).parent / "golden.json"

torch.set_num_threads(1)
# A suite that a script starts in the background is told to ignore SIGINT, and so would be every process
# that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Rewrite tests/golden.json.")


@pytest.fixture(scope="session")
def _latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_latent_checkpoint(tmp_path_factory.mktemp("latent") / "model")


@pytest.fixture
def latent(_latent: Path, tmp_path: Path) -> Path:
    """A latent checkpoint that a test may change."""
    return Path(shutil.copytree(_latent, tmp_path / "model"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, list[float]], None]:
    """Compares numbers with the golden file, or writes them into it with --update-golden."""

    def check(name: str, values: list[float]) -> None:
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        if request.config.getoption("--update-golden"):
            known[name] = values
            GOLDEN.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
        assert name in known, f"no golden values for {name}: run pytest --update-golden"
        assert values == pytest.approx(known[name], rel=1e-3, abs=1e-4)

    return check
