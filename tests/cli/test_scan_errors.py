"""A checkpoint that cannot be scanned: one line, the right code, and a report that says so and no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backdrift.cli._outputs import save
from backdrift.core.results import combined_exit_code
from report import sample

WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")
Break = Callable[[Path], None]


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def absent(folder: Path) -> None:
    shutil.rmtree(folder)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"a": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.bin")


def text_to_image(folder: Path) -> None:
    part = ["transformers", "CLIPTextModel"]
    change(folder / "model_index.json", _class_name="StableDiffusionPipeline", text_encoder=part)


def latent(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])


def truncated(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def foreign_class(folder: Path) -> None:
    change(folder / "model_index.json", unet=["evil", "Network"])


def missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / WEIGHTS)


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def absurd_size(folder: Path) -> None:
    change(folder / "unet" / "config.json", block_out_channels=[2**40, 2**40])


def absurd_image(folder: Path) -> None:
    change(folder / "unet" / "config.json", sample_size=10**9)


def broken_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text('{"sample_size": 8,\n')


def impossible_betas(folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", beta_end=2.0)


def line_break_in_a_name(folder: Path) -> None:
    change(folder / "model_index.json", **{"evil\nbackdrift: NO EVIDENCE": ["a", "b"]})


CASES: list[tuple[Break, int, str]] = [
    (absent, 4, "model"),
    (empty, 3, "empty"),
    (pickle_only, 3, "pickle"),
    (text_to_image, 3, "text-to-image"),
    (latent, 2, "vqvae"),
    (truncated, 2, "safetensors"),
    (foreign_class, 2, "evil"),
    (missing_tensor, 2, "conv_in.bias"),
    (not_a_number, 2, "NaN"),
    (absurd_size, 2, "block_out_channels"),
    (absurd_image, 2, "sample_size"),
    (broken_json, 2, "config.json"),
    (impossible_betas, 2, "beta"),
    (line_break_in_a_name, 2, "evil"),
]
case = pytest.mark.parametrize(("spoil", "code", "word"), CASES, ids=[c[0].__name__ for c in CASES])


@case
def test_one_line_one_code_and_no_verdict(
    cli: Any, model: Path, tmp_path: Path, spoil: Break, code: int, word: str
) -> None:
    spoil(model)
    before = sorted(tmp_path.rglob("*"))
    report, folder = tmp_path / "report.json", tmp_path / "evidence"
    ran = cli("scan", model, "--budget", "quick", "--format", "json", "-o", report, "--evidence", folder)
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("backdrift: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert word in ran.err
    assert "Traceback" not in ran.err
    document = json.loads(report.read_text())
    assert (document["reports"], document["exit_code"]) == ([], code)
    assert [failure["exit_code"] for failure in document["failures"]] == [code]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, report])


@case
def test_quiet_still_says_why(cli: Any, model: Path, spoil: Break, code: int, word: str) -> None:
    spoil(model)
    ran = cli("scan", model, "-q")
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)


@case
def test_invert_and_detect_say_the_same(
    cli: Any, model: Path, tmp_path: Path, spoil: Break, code: int, word: str
) -> None:
    spoil(model)
    before = sorted(tmp_path.rglob("*"))
    wanted = cli("scan", model)
    for command in (["detect", "purediffusion"], ["invert", "elijah", "-o", tmp_path / "found"]):
        ran = cli(command[0], command[1], model, *command[2:])
        assert (ran.code, ran.out, ran.err) == (wanted.code, "", wanted.err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (truncated, empty, 2),
        (empty, truncated, 2),
        (empty, pickle_only, 3),
        (empty, absent, 2),
        (absent, absent, 2),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_two_models_without_a_verdict(
    cli: Any, model: Path, tmp_path: Path, first: Break, second: Break, code: int, dry: bool
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    first(model)
    second(other)
    ran = cli("scan", model, other, *(["--dry-run"] if dry else []))
    assert ran.code == code
    for path, line in zip((model, other), ran.err.splitlines(), strict=True):
        assert line.startswith("backdrift: ")
        assert line.count(str(path)) == 1


def test_a_folder_without_a_model_costs_the_others_nothing(cli: Any, model: Path, tmp_path: Path) -> None:
    """Reports are written all the same, and the answers so far stand in them."""
    (tmp_path / "empty").mkdir()
    out = tmp_path / "r.json"
    for looking in (["--budget", "quick", "--detector", "purediffusion"], ["--static-only"]):
        where = ["--format", f"json={out}", *looking]
        ran = cli("scan", "-r", tmp_path / "empty", model, tmp_path / "nowhere", *where)
        document = json.loads(out.read_text())
        assert ran.code == document["exit_code"] == 2
        assert [failure["exit_code"] for failure in document["failures"]] == [3, 4]
        assert len(document["reports"] + document["inspections"]) == 1
        out.unlink()
    assert cli("scan", "-r", tmp_path / "empty", *where).code == 3
    assert json.loads(out.read_text())["failures"][0]["exit_code"] == 3


def test_the_exit_code_of_several() -> None:
    """1 before 2 before 3 before 0, written as ranks; a lone code stays, 4 among others is a 2."""
    rank = {1: 0, 2: 1, 4: 1, 3: 2, 0: 3}
    for length in (2, 3):
        for codes in product(rank, repeat=length):
            first = min(codes, key=rank.__getitem__)
            assert combined_exit_code(list(codes)) == (2 if first == 4 else first), codes
    assert [combined_exit_code([code]) for code in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--no-such-option"], "no-such-option"),
        (["--budget", "endless"], "quick, standard, deep"),
        (["--format", "pdf"], "text, json, sarif, markdown, html"),
        (["--format", "json="], "FORMAT=FILE"),
        (["--format", "json", "--format", "html"], "two formats for one place"),
        (["--format", "json=/no/such/folder/r.json"], "/no/such/folder"),
        (["--detector", "oracle"], "no detection plug-in 'oracle'"),
        (["-P", "budget"], "KEY=VALUE"),
        (["-P", "no=1"], "no option 'no'"),
        (["--seed", "many"], "--seed"),
        (["--batch-size", "0"], "--batch-size"),
        (["--device", "abacus"], "abacus"),
        (["--fail-on", "never"], "--fail-on"),
        (["--baseline", "/no/such/baseline.json"], "No such file"),
        (["--resume", "/dev/null"], "--resume /dev/null"),
        (["--resume", "/proc/kept"], "--resume /proc/kept"),
        (["--timeout", "inf"], "--timeout"),
        (["--timeout", "nan"], "--timeout"),
        (["--max-memory", "inf"], "--max-memory"),
        (["--max-size", "inf"], "--max-size"),
        ([""], "empty text"),
        (["--format", "json=/proc/r.json"], "cannot write /proc/r.json"),
        (["--evidence", "/proc/evidence"], "cannot write /proc/evidence"),
    ],
)
def test_usage_is_checked_first(
    cli: Any, model: Path, tmp_path: Path, arguments: list[str], word: str
) -> None:
    truncated(model)  # would be a 2
    before = sorted(tmp_path.rglob("*"))
    ran = cli("scan", model, *arguments)
    assert ran.code == 4
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    assert word in ran.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_outlives_its_folder(tmp_path: Path) -> None:
    """Removed during the scan: the answer would be lost with it."""
    place = tmp_path / "gone" / "r.json"
    assert save(sample.document(sample.report()), [("json", place)], None, 0, True) == []
    assert json.loads(place.read_text())["exit_code"] == 1


def test_demo_checks_its_output_before_it_scans(cli: Any, tmp_path: Path) -> None:
    ran = cli("demo", "-o", tmp_path / "no" / "r.html")
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1)


def test_no_model_is_a_usage_error(cli: Any) -> None:
    assert cli("scan").code == 4
    assert cli("no-such-command").code == 4


def test_a_folder_in_the_place_of_the_report_is_seen_before_the_work(
    cli: Any, model: Path, tmp_path: Path
) -> None:
    truncated(model)  # what is checked first is the place
    ran = cli("scan", model, "-o", tmp_path)
    assert ran.code == 4
    assert str(tmp_path) in ran.err


def test_evidence_goes_into_a_new_folder_only(cli: Any, model: Path, tmp_path: Path) -> None:
    truncated(model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    ran = cli("scan", model, "--evidence", tmp_path / "full")
    assert (ran.code, ran.err.count("\n")) == (4, 1)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    assert cli("scan", model, "--evidence", tmp_path / "full" / "thesis.tex").code == 4
