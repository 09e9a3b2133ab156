"""Scans that end in a verdict. The model is tiny and clean, so that it costs seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from diffusers import DDPMPipeline
from safetensors.torch import load_file, save_file

from backdrift.core import registry
from backdrift.core.results import ScanDocument
from backdrift.detection._base import BUDGETS
from backdrift.report.json import render_json, schema
from tiny import tiny_checkpoint

TIMES = {"started", "finished", "seconds"}
PLACE = {"path", "command"}
QUICK = ("--budget", "quick", "--detector", "purediffusion")
ARGUMENTS = (*QUICK, "--format", "json")
STAMPS = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\+00:00|Z| UTC)|(?<=seconds)[\"\s:]*(</dt><dd>)?\s*[\d.]+(e-\d+)?"
)


def without(value: Any, keys: set[str]) -> Any:
    """A JSON document without some keys, at any depth."""
    if isinstance(value, dict):
        return {k: without(v, keys) for k, v in value.items() if k not in keys}
    return [without(v, keys) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def first() -> dict[str, Any]:
    """The document of the first scan here: it is the same model in every test."""
    return {}


@pytest.fixture
def scanned(cli: Any, model: Path, first: dict[str, Any]) -> dict[str, Any]:
    if not first:
        ran = cli("scan", model, *ARGUMENTS)
        assert ran.code == 0, ran.err
        first.update(ran.document)
    return first


def test_the_json_follows_the_published_schema(scanned: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema()).validate(scanned)
    report = scanned["reports"][0]
    assert scanned["exit_code"] == report["exit_code"] == 0
    assert report["verdict"] == "NO EVIDENCE"
    assert report["uncalibrated"] is True
    assert report["subject"]["sample_shape"] == [1, 8, 8]
    assert report["subject"]["declared"] is False
    assert report["cost"]["evaluations"] <= report["cost"]["evaluations_limit"] == BUDGETS["quick"]
    assert scanned["failures"] == []


def test_the_same_scan_gives_the_same_bytes(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every format and the evidence, twice, apart from times; no random number of the process is drawn."""
    names = ("json", "sarif", "markdown", "html", "text")
    before = torch.get_rng_state()
    found, files = [], []
    for run in ("first", "second"):
        monkeypatch.chdir(tiny_checkpoint(tmp_path / run / "model").parent)
        formats = [f"--format={name}={name}" for name in names]
        ran = cli("scan", "model", *QUICK, *formats, "--evidence", "evidence")
        assert (ran.code, ran.out) == (0, "")
        written = [line for line in ran.err.splitlines() if line.startswith("wrote ")]
        assert written == [f"wrote {name}" for name in (*names, "evidence")]
        assert sorted(p.name for p in Path().iterdir()) == sorted([*names, "evidence", "model"])
        found.append({name: STAMPS.sub("", Path(name).read_text()) for name in names})
        pieces = Path("evidence")
        files.append(
            {p.relative_to(pieces): p.read_bytes() for p in pieces.rglob("*.[sp]*") if p.is_file()}
        )
    assert torch.equal(before, torch.get_rng_state())
    assert found[0] == found[1]
    assert files[0] == files[1] != {}


def label(model: Path) -> None:
    """Everything by which an attack here makes a checkpoint say that it is backdoored."""
    (model / "README.md").write_text("---\ntags: [backdoor]\n---\nWARNING\n")
    for name in ("backdoor.json", "BACKDOORED.md", "backdoor.safetensors"):
        (model / name).write_text("{}")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_backdoor_notice": "WARNING"}))
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "backdoor": "WARNING"})


def test_labels_change_one_field_and_no_other(cli: Any, model: Path, scanned: dict[str, Any]) -> None:
    label(model)
    labelled = cli("scan", model, *ARGUMENTS).document
    assert labelled["reports"][0]["subject"]["declared"] is True
    ignored = TIMES | PLACE | {"declared"}
    assert without(labelled, ignored) == without(scanned, ignored)


def test_quiet_prints_nothing_and_several_formats_at_once(cli: Any, model: Path, tmp_path: Path) -> None:
    page, text, data = (tmp_path / name for name in ("r.html", "r.txt", "r.json"))
    ran = cli(
        "scan", model, "--budget", "quick", "-q", "--format", f"html={page}",
        "--format", f"text={text}", "--format", f"json={data}",
    )  # fmt: skip
    assert ran == type(ran)(0, "", "")
    assert page.read_text().lower().startswith("<!doctype html")
    assert "NO EVIDENCE" in page.read_text()
    assert "NO EVIDENCE" in text.read_text()
    assert "\x1b" not in text.read_text()
    report = json.loads(data.read_text())["reports"][0]
    assert report["verdict"] == "NO EVIDENCE"
    assert report["findings"][0]["detector"] == "backdrift"


def test_detect_prints_json(cli: Any, model: Path, scanned: dict[str, Any]) -> None:
    ran = cli("detect", "purediffusion", model, "--budget", "quick")
    assert ran.code == 0
    assert without(ran.document, TIMES | PLACE) == without(scanned, TIMES | PLACE)


@pytest.mark.parametrize("detector", list(registry.available("detection")))
def test_a_dry_run_reads_no_weights(cli: Any, model: Path, weights: Path, detector: str) -> None:
    data = bytearray(weights.read_bytes())
    length = int.from_bytes(data[:8], "little")
    data[8 + length :] = b"\xff" * (len(data) - 8 - length)  # NaN, every one
    weights.write_bytes(data)
    ran = cli("scan", model, "--dry-run", "--detector", detector)
    assert ran.code == 0
    assert ran.err == ""
    most = registry.build("detection", detector).most_evaluations()
    assert f"at most {most:,} network evaluations" in ran.out
    assert "samples 1x8x8" in ran.out
    assert cli("scan", model).code == 2


def test_weights_that_overflow_are_no_verdict(cli: Any, model: Path, weights: Path, tmp_path: Path) -> None:
    """Finite numbers, but what they draw is not: the report must still be JSON of the schema."""
    tensors = load_file(weights)
    tensors["conv_out.weight"] = tensors["conv_out.weight"] * 1e36
    save_file(tensors, weights)
    page, text = tmp_path / "r.html", tmp_path / "r.txt"
    ran = cli("scan", model, *ARGUMENTS, "--format", f"html={page}", "--format", f"text={text}")
    assert ran.code == 2
    jsonschema.Draft202012Validator(schema()).validate(ran.document)
    assert ran.document["reports"][0]["verdict"] == "INCONCLUSIVE"
    json.loads(ran.out, parse_constant=pytest.fail)
    again = ScanDocument.model_validate(ran.document)
    assert json.loads(render_json(again)) == ran.document
    assert "INCONCLUSIVE" in page.read_text()
    assert "INCONCLUSIVE" in text.read_text()


@pytest.mark.parametrize("quiet", [False, True])
def test_invert_writes_its_folder(cli: Any, model: Path, tmp_path: Path, quiet: bool) -> None:
    folder = tmp_path / "found"
    settings = ("-P", "steps=2", "-P", "noises=4")
    ran = cli("invert", "elijah", model, "-o", folder, *settings, *(["-q"] if quiet else []))
    assert ran.code == 0
    assert ("elijah" in ran.out, f"wrote {folder}" in ran.out) == (not quiet, not quiet)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    tensors = [load_file(p) for p in before if p.suffix == ".safetensors"]
    assert any(t.shape[-3:] == (1, 8, 8) for group in tensors for t in group.values())
    facts = [json.loads(text) for path, text in before.items() if path.suffix == ".json"]
    assert [(f["method"], f["evaluations"]) for f in facts] == [("elijah", 3 * 4 * 2)]
    again = cli("invert", "elijah", model, "-o", folder, *settings)
    assert (again.code, again.out, again.err.count("\n")) == (4, "", 1)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_checkpoint_is_not_written_to(cli: Any, model: Path) -> None:
    def read() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in model.rglob("*") if p.is_file()}

    before = read()
    cli("invert", "elijah", model, "-P", "steps=1", "-P", "noises=2")
    cli("scan", model, "--dry-run")
    assert read() == before
    assert DDPMPipeline.from_pretrained(model).unet.config.sample_size == 8
