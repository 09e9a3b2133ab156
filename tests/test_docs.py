"""The documentation: it builds without warnings, and what it shows is run.

Blocks of ``sh`` and ``python`` are executed, in the order of the page, in a folder with the two models of
the tutorial. Blocks of ``bash`` and ``yaml`` are not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_" not in page.parts[len(DOCS.parts)][:1])
EXECUTED = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", EXECUTED, ids=[str(page.relative_to(DOCS)) for page in EXECUTED])
def test_examples_run(page: Path, tmp_path: Path) -> None:
    shipped = Path(str(resources.files("backdrift").joinpath("models")))
    for name, source in (("good", "clean"), ("bad", "backdoored")):
        shutil.copytree(shipped / source, tmp_path / "models" / name)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "backdrift"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m backdrift "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        run = ["sh", "-eu", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        codes = re.findall(r"^exit code (\d+)$", done.stdout, re.MULTILINE)
        assert set(codes) <= {"0", "1"} or "--strict" in text, f"{text}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("sphinx") is None, reason="needs the extra docs")
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        tmp_path / "trees",
    ]
    done = subprocess.run([*command, DOCS, tmp_path / "html"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rules = (tmp_path / "html" / "reference" / "rules.html").read_text()
    assert "BD001 backdoored" in rules
    commands = (tmp_path / "html" / "reference" / "commands.html").read_text()
    assert "--fail-on" in commands


def test_pages_have_examples_and_link_to_what_there_is() -> None:
    assert {page.name for page in EXECUTED} >= {
        "quickstart.md",
        "tutorial.md",
        "ci.md",
        "baseline.md",
        "many.md",
    }
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+\.md)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
