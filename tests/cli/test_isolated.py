"""The command line as people use it: scans in a process of their own, looks without torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file

from backdrift.report.json import schema

QUICK = ("--budget", "quick", "--detector", "purediffusion", "--format", "json")


def test_pickle_weights_are_scanned_when_allowed_and_others_go_on(
    cli: Any, model: Path, weights: Path, tmp_path: Path
) -> None:
    """One model that cannot be scanned, one with pickle weights; one document, limits and all."""
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    (broken / "unet" / "config.json").write_text("[]")
    torch.save(OrderedDict(load_file(weights)), weights.with_suffix(".bin"))
    weights.unlink()
    assert cli("scan", model, *QUICK, isolated=True).code == 3
    ran = cli("scan", broken, model, *QUICK, "--allow-pickle", isolated=True)
    assert ran.code == 2
    jsonschema.Draft202012Validator(schema()).validate(ran.document)
    (failure,), (report,) = ran.document["failures"], ran.document["reports"]
    assert (failure["exit_code"], failure["rule"]) == (2, "BD201")
    assert report["verdict"] == "NO EVIDENCE"
    assert [f["rule"] for f in report["static"]] == ["BD502"]
    assert {limit["name"] for limit in report["limits"]} >= {"wall clock", "memory", "network"}


def test_limits_need_a_process_of_their_own(cli: Any, model: Path) -> None:
    for option in (["--timeout", "5"], ["--max-memory", "1"], ["--allow-pickle"]):
        ran = cli("scan", model, *option)
        assert (ran.code, ran.err.count("\n")) == (4, 1)
        assert option[0] in ran.err


def test_a_timeout_is_one_line_and_a_2(cli: Any, model: Path, tmp_path: Path) -> None:
    ran = cli("scan", model, *QUICK, "-q", "-o", tmp_path / "r.json", "--timeout", "1", isolated=True)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "longer than 1 s" in ran.err
    document = json.loads((tmp_path / "r.json").read_text())
    assert (document["reports"], [f["rule"] for f in document["failures"]]) == ([], ["BD006"])


def test_bounds(cli: Any, model: Path) -> None:
    for option in (["--max-params", "10"], ["--max-size", "0.001"]):
        ran = cli("scan", model, "--dry-run", *option)
        if option[0] == "--max-params":
            assert (ran.code, ran.err.count("\n")) == (2, 1)
        else:
            assert ran.code == 0


def python(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_static_only_needs_no_torch_and_says_what_it_saw(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")
    code = (
        "import sys; from backdrift.cli.main import call; code = call(sys.argv[1:]); "
        "assert not {'torch', 'diffusers', 'sklearn', 'safetensors'} & set(sys.modules); sys.exit(code)"
    )
    done = python("-c", code, "scan", model, "--static-only")
    assert (done.returncode, done.stderr) == (0, "")
    assert "BD101 warning: unet/diffusion_pytorch_model.bin" in done.stdout
    assert "the model was not run" in done.stdout


def test_static_only_as_json(cli: Any, model: Path, tmp_path: Path) -> None:
    (model / "picture.png").write_bytes(b"\x80\x04.")
    (tmp_path / "empty").mkdir()
    ran = cli("scan", model, "--static-only", "--format", "json")
    assert ran.code == ran.document["exit_code"] == 1
    jsonschema.Draft202012Validator(schema()).validate(ran.document)
    (inspection,) = ran.document["inspections"]
    assert [(f["rule"], f["level"]) for f in inspection["static"]] == [("BD105", "error")]
    assert "behaviour" in {left["what"] for left in inspection["not_measured"]}
    assert cli("scan", tmp_path / "empty", "--static-only").code == 3
    assert cli("scan", tmp_path / "absent", "--static-only").code == 4
    (model / "unet" / "config.json").write_text("{")
    ran = cli("scan", model, "--static-only", "--format", "json")
    assert (ran.code, ran.document["failures"][0]["rule"]) == (2, "BD201")
    assert cli("scan", model, "--static-only", "--format", "html").code == 4


def test_modules_in_the_working_folder_are_not_imported(model: Path) -> None:
    """``python -m backdrift`` in the folder of a checkpoint that brings its own torch."""
    marker = model / "marker"
    for name in ("torch", "diffusers", "numpy", "typer", "pydantic"):
        (model / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    env_free = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "backdrift", "scan", ".", "--static-only", "--format", "json"],
        capture_output=True, text=True, check=False, cwd=model, env=env_free,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["inspections"][0]["static"]) == 5
    assert not marker.exists()


@pytest.mark.parametrize("method", ["purediffusion"])
def test_detect_is_isolated_too(cli: Any, model: Path, weights: Path, method: str) -> None:
    weights.write_bytes(weights.read_bytes()[:-10])
    ran = cli("detect", method, model, "--budget", "quick", isolated=True)
    assert (ran.code, ran.err.count("\n")) == (2, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the child")
def test_an_interrupted_scan_ends_its_process_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    report, scratch = tmp_path / "r.json", tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "backdrift", "scan", str(model), "--budget", "deep", "-o", str(report)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)}
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        end = time.monotonic() + 60
        while not children.read_text().split() and time.monotonic() < end:
            time.sleep(0.1)
        (child,) = children.read_text().split()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "backdrift: interrupted")
    assert "Traceback" not in err
    assert not Path("/proc", child).exists()
    assert [p.name for p in tmp_path.iterdir() if p.name != "model"] == ["scratch"]
    assert list(scratch.iterdir()) == []
