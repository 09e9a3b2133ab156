"""evaluate, sample, restore, declare: what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from backdrift.groundtruth import load_backdoor

SMALL = ("-n", 20, "--steps", 3)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:5, 2:5] = 255
    path = tmp_path / "patch.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def record(cli: Any, model: Path, picture: Path, tmp_path: Path) -> Path:
    ran = cli("declare", "-q", model, "--trigger", picture, "--target", picture, "-o", tmp_path / "record")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    return tmp_path / "record"


def test_declare_from_pictures(cli: Any, model: Path, picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "record"
    ran = cli(
        "declare", model, "--trigger", picture, "--target", picture, "-o", folder,
        "--sampler-family", "ode", "--poison-rate", "0.1", "--data", "digits", "--attack", "theirs",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in folder.iterdir()) == ["backdoor.json", "backdoor.safetensors"]
    known = load_backdoor(folder / "backdoor.json")
    assert known.record.model_dump(include={"attack", "sampler_family", "poison_rate", "trigger"}) == {
        "attack": "theirs",
        "sampler_family": "ode",
        "poison_rate": 0.1,
        "trigger": "patch.png",
    }
    assert known.shift[0, 3, 3] == 1
    assert known.shift[0, 0, 0] == -1
    assert torch.equal(known.target.image, known.shift)
    assert known.trigger.mask.sum() == 9
    assert known.mean_shift is not None
    assert known.mean_shift[0, 3, 3] == 1
    assert known.mean_shift[0, 0, 0] != 1
    assert 0 < known.target.threshold <= 0.05
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    again = cli("declare", model, "--trigger", picture, "--target", picture, "-o", folder)
    assert (again.code, again.out, again.err.count("\n")) == (2, "", 1)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_declare_from_tensors(cli: Any, model: Path, tmp_path: Path) -> None:
    r = torch.full((1, 8, 8), 2.5)
    save_file({"trigger": r}, tmp_path / "r.safetensors")
    ran = cli(
        "declare", model, "--trigger", tmp_path / "r.safetensors", "--target", "corner",
        "-o", tmp_path / "record",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    known = load_backdoor(tmp_path / "record")
    assert torch.equal(known.shift, r)
    assert known.mean_shift is None
    assert (known.record.poison_rate, known.record.sampler_family) == (None, None)
    assert known.target.threshold == 0.05


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--trigger", "gun"], "unknown trigger 'gun'"),
        (["--trigger", "none.png"], "cannot read none.png"),
        (["--trigger", "none.safetensors"], "cannot read none.safetensors"),
        (["--trigger", "wide.safetensors"], "the model draws (1, 8, 8)"),
        (["--trigger", "two.safetensors"], "holds 2 tensors"),
        (["--trigger", "text.png"], "cannot read text.png"),
        (["--poison-rate", "2"], "share in [0, 1]"),
        (["--sampler-family", "pde"], "sampler-family"),
        (["--hit-threshold", "2"], "threshold"),
        (["--data", "faces"], "unknown data set 'faces'"),
    ],
)
def test_declare_refuses_in_one_line(
    cli: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"r": torch.zeros(1, 8, 9)}, "wide.safetensors")
    save_file({"a": torch.zeros(1, 8, 8), "b": torch.zeros(1, 8, 8)}, "two.safetensors")
    Path("text.png").write_text("no picture")
    trigger = [] if "--trigger" in arguments else ["--trigger", "grey-box-8"]
    ran = cli("declare", model, *trigger, "--target", "corner", "-o", "record", *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1), ran.err
    assert word in ran.err
    assert not Path("record").exists()


def test_evaluate_prints_a_table_and_writes_json(
    cli: Any, model: Path, record: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    command = ("evaluate", model, "--backdoor", record / "backdoor.json", "--data", "digits", *SMALL)
    ran = cli(*command, "--clean-twin", model, "-o", output)
    assert ran.code == 0, ran.err
    document = json.loads(output.read_text())
    names = [m["name"] for m in document["measures"]]
    assert names[:4] == ["ASR", "hits without trigger", "MSE", "MSE without trigger"]
    for name in names:
        assert any(line.startswith(name) for line in ran.out.splitlines())
    assert "hit: MSE below 0.0500" in ran.out
    assert "against digits (1797 images)" in ran.out
    ratio = document["measures"][-1]
    assert ratio["name"] == "FD(random-conv) ratio"
    assert (ratio["value"], ratio["high"]) == (1.0, 1.0)  # its own twin: same seeds, same samples
    assert document["clean_twin"] == document["model"]
    for measure in document["measures"]:
        assert {"n", "seed", "sampler", "steps", "low", "high", "interval"} <= set(measure)
        assert measure["steps"] == 3
    assert document["environment"]["threads"] == 1
    assert "evaluate:" in ran.err
    first = document["measures"]
    again = cli(*command, "--clean-twin", model, "-o", output, "-q")
    assert (again.code, again.out, again.err) == (0, "", "")
    assert json.loads(output.read_text())["measures"] == first


def test_evaluate_without_data_says_what_is_missing(cli: Any, model: Path, record: Path) -> None:
    ran = cli("evaluate", model, "--backdoor", record, *SMALL)
    assert ran.code == 0, ran.err
    assert "FD" not in ran.out.split("FD and KD were not measured")[0]
    assert "give --data" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ([], 4, "no backdoor record"),
        (["--backdoor", "none"], 4, "no backdoor record"),
        (["--backdoor", "record", "--sampler", "euler"], 4, "unknown sampler 'euler'"),
        (["--backdoor", "record", "--steps", "101"], 4, "steps"),
        (["--backdoor", "record", "-n", "3"], 4, "20"),
        (["--backdoor", "record", "--data", "faces"], 4, "unknown data set"),
        (["--backdoor", "record", "--clean-twin", "none"], 4, "none"),
        (["--backdoor", "record", "--fid-weights", "none.pth"], 4, "cannot read none.pth"),
        (["--backdoor", "record", "--device", "tpu"], 4, "tpu"),
        (["--backdoor", "record", "-o", "no/such/out.json"], 4, "no folder"),
        (["--backdoor", "broken"], 4, "does not go with its record"),
    ],
)
def test_evaluate_refuses_in_one_line(
    cli: Any,
    model: Path,
    record: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").mkdir()
    Path("broken/backdoor.json").write_bytes((record / "backdoor.json").read_bytes())
    Path("broken/backdoor.safetensors").write_bytes(b"short")
    ran = cli("evaluate", model, "-o", "out.json", *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1), ran.err
    assert word in ran.err
    assert not Path("out.json").exists()


def test_sample_draws_the_same_noise_with_and_without(
    cli: Any, model: Path, record: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "strip.png")]
    common = ("-n", 5, "--sampler", "ddim", "--steps", 4)
    ran = cli("sample", model, "-o", paths[0], *common, "--latents", paths[3])
    assert ran.code == 0, ran.err
    assert "t = 99, 74, 49, 24" in ran.out
    assert cli("sample", "-q", model, "-o", paths[1], *common).code == 0
    assert cli("sample", "-q", model, "-o", paths[2], *common, "--backdoor", record).code == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes() != paths[2].read_bytes()
    assert size(paths[0]) == (3 * 9 - 1, 2 * 9 - 1)
    assert size(paths[3]) == (4 * 9 - 1, 5 * 9 - 1)
    for arguments, word in (
        (["--sampler", "euler"], "unknown sampler"),
        (["--steps", 101], "steps"),
        (["--backdoor", tmp_path / "none"], "no backdoor record"),
        (["--latents", tmp_path / "no" / "x.png"], "no folder"),
    ):
        bad = cli("sample", model, "-o", tmp_path / "bad.png", *arguments)
        assert (bad.code, bad.out, bad.err.count("\n")) == (4, "", 1)
        assert word in bad.err
        assert not (tmp_path / "bad.png").exists()


def test_restore_writes_a_grid_and_its_scores(cli: Any, model: Path, record: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.png"
    ran = cli("restore", model, "--task", "inpaint-box", "--backdoor", record, *SMALL, "-o", grid)
    assert ran.code == 0, ran.err
    assert size(grid) == (16 * 9 - 1, 5 * 9 - 1)
    document = json.loads(grid.with_suffix(".json").read_text())
    names = {m["name"] for m in document["measures"]}
    assert {"MSE", "SSIM", "MSE triggered", "SSIM triggered", "ASR", "hits without trigger"} <= names
    assert document["task"] == "inpaint-box"
    assert "ASR" in ran.out
    for arguments, word in (
        (["--task", "upscale"], "--task"),
        (["--task", "denoise", "--steps", 101], "1..100"),
        (["--task", "denoise", "-n", 5000], "has 1797 images"),
        (["--task", "denoise", "-o", tmp_path / "x.jpg"], "PNG"),
        (["--task", "denoise", "--lpips-weights", tmp_path / "none.pth"], "none.pth"),
    ):
        bad = cli("restore", model, "-o", tmp_path / "bad.png", *arguments)
        assert (bad.code, bad.out, bad.err.count("\n")) == (4, "", 1), bad.err
        assert word in bad.err
        assert not (tmp_path / "bad.png").exists()
