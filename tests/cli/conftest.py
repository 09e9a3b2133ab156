from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backdrift.cli.main import call
from tiny import tiny_checkpoint


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process: exit code, and what reached the two descriptors.

    Scans stay in it as well, unless they are to be ``isolated``: a process of its own costs seconds.
    """

    def run(*arguments: object, isolated: bool = False) -> Ran:
        capfd.readouterr()
        words = [str(argument) for argument in arguments]
        if words[0] in ("scan", "detect") and not isolated:
            words.append("--in-process")
        code = call(words)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(scope="session")
def _stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("stock") / "model")


@pytest.fixture
def model(_stock: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(_stock, tmp_path / "model"))


@pytest.fixture
def weights(model: Path) -> Path:
    return model / "unet" / "diffusion_pytorch_model.safetensors"
