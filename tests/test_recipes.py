"""The recipes for pipelines: their form, and the shell of the action run as a runner would."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pre_commit.clientlib import load_manifest

from backdrift.cli.main import call
from tiny import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step.get("name", step.get("uses")): step for step in ACTION["runs"]["steps"]}


def test_the_action_passes_inputs_as_data() -> None:
    """An expression inside a script would be shell that whoever writes the input writes."""
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert ("run" in step) == ("shell" in step)
    for name, given in ACTION["inputs"].items():
        assert given["description"]
        assert given.get("required") or isinstance(given["default"], str), name
    for output in ACTION["outputs"].values():
        (key,) = re.findall(r"steps\.scan\.outputs\.([\w-]+)", output["value"])
        assert f"{key}=" in STEPS["Scan"]["run"]


@pytest.fixture
def runner(tmp_path: Path) -> dict[str, str]:
    """The environment of a runner in whose virtual environment this backdrift is installed."""
    bin_ = tmp_path / "backdrift" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "backdrift").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m backdrift "$@"\n')
    (bin_ / "backdrift").chmod(0o755)
    (tmp_path / "work").mkdir()
    settings = {k.replace("-", "_").upper(): v.get("default", "") for k, v in ACTION["inputs"].items()}
    places = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary"}
    files = {name: str(tmp_path / file) for name, file in places.items()}
    (tmp_path / "summary").write_text("from a step before\n")
    return {**os.environ, "OMP_NUM_THREADS": "1", "RUNNER_TEMP": str(tmp_path), **settings, **files}


def scan_step(runner: dict[str, str], **inputs: str) -> tuple[dict[str, str], str, str]:
    """Outputs of the step, the job page, what the step printed."""
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS["Scan"]["run"]],
        env={**runner, **inputs}, cwd=Path(runner["RUNNER_TEMP"]) / "work",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
    lines = Path(runner["GITHUB_OUTPUT"]).read_text().splitlines()
    outputs = dict(line.split("=", 1) for line in lines)
    return outputs, Path(runner["GITHUB_STEP_SUMMARY"]).read_text(), done.stdout


def verdict_step(code: str) -> int:
    run = STEPS["Verdict"]["run"]
    return subprocess.run(["bash", "-c", run], env={**os.environ, "CODE": code}, check=False).returncode


def test_the_step_fails_with_the_code_of_the_scan(runner: dict[str, str]) -> None:
    (Path(runner["RUNNER_TEMP"]) / "work" / "empty model").mkdir()
    outputs, page, _ = scan_step(runner, MODELS="empty model\n$(touch hacked); `touch hacked`\n")
    assert outputs["exit-code"] == "2"  # 4 of the second counts as 2
    assert outputs["written"] == "true"
    assert page.startswith("from a step before\n## Backdrift")
    assert "empty model" in page
    log = json.loads(Path(outputs["sarif"]).read_text())
    assert [r["ruleId"] for r in log["runs"][0]["results"]] == ["BD004", "BD111"]
    assert log["runs"][0]["invocations"][0]["exitCode"] == 2
    assert not list(Path(runner["RUNNER_TEMP"]).rglob("hacked"))
    assert [verdict_step(code) for code in ("0", "1", "2", "3", "")] == [0, 1, 2, 3, 2]


def test_odd_inputs_are_data(runner: dict[str, str]) -> None:
    """Quotes, options, expressions, and what a runner would take for a command of its own."""
    work = Path(runner["RUNNER_TEMP"]) / "work"
    (work / 'it\'s "odd" --exit-zero').mkdir()
    names = ['it\'s "odd" --exit-zero', "--exit-zero", "-q", "::set-output name=exit-code::0", "${{ x }}"]
    environment = {**runner, "models": "from the job", "arguments": "--version"}
    outputs, _, printed = scan_step(
        environment, MODELS="\n".join(names), BASELINE="--exit-zero $(touch hacked)"
    )
    assert outputs == {"exit-code": "4", **{k: v for k, v in outputs.items() if k in ("sarif", "json")}}
    assert "--baseline --exit-zero $(touch hacked): No such file" in printed
    Path(runner["GITHUB_OUTPUT"]).unlink()
    outputs, _, printed = scan_step(environment, MODELS="\n".join(names))
    assert outputs["exit-code"] == "2"
    failures = json.loads(Path(outputs["json"]).read_text())["failures"]
    assert [failure["path"] for failure in failures] == names
    lines = printed.splitlines()
    token = next(line for line in lines if line.startswith("::stop-commands::")).removeprefix(
        "::stop-commands::"
    )
    assert re.fullmatch(r"[0-9a-f]{32}", token)
    said = [number for number, line in enumerate(lines) if "set-output" in line]
    assert said
    assert lines.index(f"::stop-commands::{token}") < min(said) <= max(said) < lines.index(f"::{token}::")
    assert not list(work.parent.rglob("hacked"))


def test_modules_of_the_workspace_are_none_of_pythons(runner: dict[str, str]) -> None:
    """The step that installs, as far as it needs no index."""
    work = Path(runner["RUNNER_TEMP"]) / "work"
    for name in ("venv", "ensurepip", "subprocess"):
        (work / f"{name}.py").write_text(f"open({str(work / 'hacked')!r}, 'w')\nraise SystemExit(3)\n")
    first = STEPS["Install"]["run"].splitlines()[0].replace("python ", f'"{sys.executable}" ')
    run = first.replace(" -m venv ", " -m venv --without-pip ")
    assert run != first
    places = {**runner, "RUNNER_TEMP": str(work.parent / "t")}
    subprocess.run(["bash", "-ec", run], env=places, cwd=work, check=True)
    assert (work.parent / "t" / "backdrift" / "bin" / "activate").exists()
    assert not (work / "hacked").exists()


def test_an_option_that_is_none_fails_and_uploads_nothing(runner: dict[str, str]) -> None:
    outputs, page, printed = scan_step(runner, MODELS="x", FAIL_ON="never")
    assert outputs["exit-code"] == "4"
    assert "written" not in outputs
    assert page == "from a step before\n"
    assert "--fail-on" in printed


@pytest.mark.slow
def test_a_whole_scan_in_the_step(runner: dict[str, str]) -> None:
    tiny_checkpoint(Path(runner["RUNNER_TEMP"]) / "work" / "models" / "a")
    outputs, page, printed = scan_step(
        runner, MODELS="models", RECURSIVE="true", BUDGET="quick", STRICT="true"
    )
    assert outputs["exit-code"] == "2", printed
    assert "**NO EVIDENCE** (uncalibrated)" in page
    (result,) = json.loads(Path(outputs["sarif"]).read_text())["runs"][0]["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "models/a/unet/diffusion_pytorch_model.safetensors"


def test_the_hooks_of_pre_commit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """pre-commit's own reader takes them, and their commands are ones that we have."""
    hooks = {hook["id"]: hook for hook in load_manifest(ROOT / ".pre-commit-hooks.yaml")}
    assert set(hooks) == {"backdrift-static", "backdrift-scan"}
    tiny_checkpoint(tmp_path / "models" / "a")
    for hook in hooks.values():
        name, *arguments = hook["entry"].split()
        assert name == "backdrift"
        assert call([*arguments, "--help"]) == 0
    (tmp_path / "models" / "a" / "unet" / "setup.exe").write_bytes(b"MZ")
    _, *static = hooks["backdrift-static"]["entry"].split()
    assert call([*static, str(tmp_path / "models"), "--fail-on", "warning"]) == 1
    assert "BD102" in capfd.readouterr().out


def test_the_image_is_built_from_what_it_may_see() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    allowed = [
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert users[-1] != "root"
    assert lines.index(f"USER {users[-1]}") < next(
        i for i, x in enumerate(lines) if x.startswith("ENTRYPOINT")
    )
    assert not [line for line in lines if line.startswith("ADD")]
    base = next(line for line in lines if line.startswith("FROM"))
    assert re.search(r":\d+\.\d+", base)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_shell_of_recipes_parses() -> None:
    runs = [line[4:] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("RUN ")]
    for script in [*runs, *(step["run"] for step in ACTION["runs"]["steps"] if "run" in step)]:
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR
