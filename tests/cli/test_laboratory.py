"""train, attack, zoo, list: what they write, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backdrift.attacks.patterns import TARGETS, TRIGGERS
from backdrift.bench import _planting, zoo
from backdrift.bench.recipes import Recipe, make
from backdrift.core import registry
from backdrift.core.sampling import SAMPLERS
from backdrift.data import DATASETS
from backdrift.groundtruth import NOTICE, load_backdoor
from backdrift.io.plan import plan

SMALL = ("--size", "8", "--width", "8", "--steps", "2", "--rows", "4")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps in place of 100 for the ASR in a record, of which no number is looked at here."""
    monkeypatch.setattr(_planting, "STEPS", 4)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_train_writes_a_stock_pipeline_and_does_not_overwrite(cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "clean"
    ran = cli("train", "-o", folder, *SMALL)
    assert ran.code == 0, ran.err
    assert f"wrote {folder}: 2 steps" in ran.out
    pipeline = DDPMPipeline.from_pretrained(folder)
    images = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 1)
    assert pipeline.scheduler.config.clip_sample is False
    assert plan(folder).declared is False
    assert sorted(p.name for p in folder.parent.iterdir()) == ["clean", "clean.jsonl"]
    before = everything(folder)
    again = cli("train", "-o", folder, *SMALL)
    assert (again.code, again.out, again.err.count("\n")) == (4, "", 1)
    assert "exists" in again.err
    assert everything(folder) == before


def test_a_tracker_gets_what_the_log_gets(cli: Any, tmp_path: Path) -> None:
    ran = cli("train", "-q", "-o", tmp_path / "clean", *SMALL, "--log-with", "tensorboard")
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "clean.jsonl", "clean.runs"]
    events = EventAccumulator(str(tmp_path / "clean.runs" / "clean"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert logged
    assert {one.step: one.value for one in events.Scalars("loss")} == pytest.approx(logged)
    wrong = cli("train", "-q", "-o", tmp_path / "wrong", *SMALL, "--log-with", "nosuch")
    assert (wrong.code, wrong.err) == (
        4,
        "backdrift: no tracker 'nosuch' is installed; there: tensorboard\n",
    )


def test_a_folder_with_a_bad_image_is_refused_or_read_alike_by_all(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the training skipped is skipped again by whoever measures the model."""
    monkeypatch.chdir(tmp_path)
    images, model, record = tmp_path / "images", tmp_path / "model", tmp_path / "record"
    images.mkdir()
    for number in range(24):
        drawn = Image.effect_noise((8 + number % 3, 9), 90)
        drawn.save(images / f"{number:02}.png")
    (images / "bad.png").write_bytes(b"no picture")
    data, skip = ("--data", "folder:images"), ("--on-bad-image", "skip")
    attack = ("attack", "baddiffusion", "-o", model, *data, *SMALL, "--trigger", "white-patch")
    refused = cli(*attack)
    assert (refused.code, model.exists()) == (4, False)
    assert "bad.png" in refused.err
    assert "--on-bad-image skip" in refused.err
    made = cli(*attack, *skip)
    assert made.code == 0, made.err
    assert "skipped 1 of 25 images: bad.png" in caplog.text
    few = ("--samples", "20", "--steps", "2")
    declared = ("declare", model, "--trigger", "white-patch", "--target", "hat", *data, "-o", record)
    assert cli(*declared).code == 4
    assert cli(*declared, *skip).code == 0
    for own in ((), ("--backdoor", record / "backdoor.json")):
        found = cli("evaluate", model, *own, *few)
        assert found.code == 0, found.err
        assert "(24 images)" in found.out
    for command in (
        ("evaluate", model, *few),
        ("restore", model, "--task", "denoise", "-n", "20", "--steps", "2"),
    ):
        output = ("-o", tmp_path / "restored.png") if command[0] == "restore" else ()
        assert cli(*command, *output, *data).code == 4
        found = cli(*command, *output, *data, *skip)
        assert found.code == 0, found.err
    text = (model / "backdoor.json").read_text()
    (model / "backdoor.json").write_text(text.replace('"on_bad": "skip",\n  "seed"', '"seed"'))
    assert load_backdoor(model).record.on_bad == "refuse"
    assert cli("evaluate", model, *few).code == 4
    assert cli("evaluate", model, *few, *skip).code == 0  # as the line says
    (model / "backdoor.json").write_text(text)
    assert load_backdoor(model).dataset((1, 8, 8)).sha256 == load_backdoor(record).record.data_sha256


def test_train_repeats_to_the_bit_and_quietly(cli: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ran = cli("train", "-q", "-o", tmp_path / name, "--seed", seed, *SMALL)
        assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() != (tmp_path / "c" / weights).read_bytes()


def test_the_options_of_training_reach_it(cli: Any, tmp_path: Path) -> None:
    weights, seen = "unet/diffusion_pytorch_model.safetensors", set()
    for name, options in {
        "plain": (),
        "other": ("--accumulate", "2", "--ema", "0.9", "--mixed-precision", "bf16"),
        "offset": ("--offset-noise", "0.5"),
    }.items():
        ran = cli("train", "-q", "-o", tmp_path / name, *SMALL, *options)
        assert ran.code == 0, ran.err
        seen.add((tmp_path / name / weights).read_bytes())
    assert len(seen) == 3
    for flags in (
        ("--accumulate", "3"),
        ("--ema", "1.5"),
        ("--offset-noise", "-1"),
        ("--mixed-precision", "fp7"),
        ("--log-with", "x"),
    ):
        wrong = cli("train", "-q", "-o", tmp_path / "wrong", *SMALL, *flags)
        assert wrong.code in (2, 4), flags
        assert wrong.err.count("\n") == 1, wrong.err
        assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(("attack", "declared"), [("invisible", True), ("clean", False)])
def test_an_attack_knows_its_own_defaults(cli: Any, tmp_path: Path, attack: str, declared: bool) -> None:
    ran = cli("attack", attack, "-q", "-o", tmp_path / "model", *SMALL)
    assert ran.code == 0, ran.err
    assert plan(tmp_path / "model").declared is declared


def test_a_backdoored_checkpoint_says_so_itself(cli: Any, tmp_path: Path) -> None:
    base, folder = tmp_path / "clean", tmp_path / "bad"
    assert cli("train", "-q", "-o", base, *SMALL).code == 0
    settings = ("--trigger", "white-patch", "--target", "corner", "--poison-rate", "0.5", "--trigger-only")
    ran = cli(
        "attack",
        "baddiffusion",
        "-o",
        folder,
        "--base",
        base,
        "--steps",
        "2",
        "--keep",
        "1",
        "--rows",
        "4",
        *settings,
    )
    assert ran.code == 0, ran.err
    assert "ASR" in ran.out
    DDPMPipeline.from_pretrained(folder)
    assert plan(folder).declared is True
    card = (folder / "README.md").read_text()
    assert card.split("---\n")[2].splitlines()[0] == NOTICE
    assert NOTICE in (folder / "BACKDOORED.md").read_text()
    assert NOTICE in (folder / "model_index.json").read_text()
    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert NOTICE in file.metadata().values()
    record = json.loads((folder / "backdoor.json").read_text())
    assert record["notice"] == NOTICE
    assert record["poison_rate"] == 0.5
    assert len(record["poisoned_rows"]) == 1797 // 2
    assert record["composite"] is False
    planted = load_backdoor(folder)
    assert float(planted.shift.norm()) == pytest.approx(record["trigger_norm"])
    assert torch.equal(planted.shift, planted.mean_shift)  # trigger-only, so r is what it learns
    assert planted.target.image.shape == (1, 8, 8)
    assert 0 < planted.target.threshold <= 0.05
    kept = folder.with_name("bad.steps") / "000001"
    assert plan(kept).declared is True
    DDPMPipeline.from_pretrained(kept)
    before = everything(folder)
    again = cli("attack", "baddiffusion", "-o", folder, "--base", base, "--steps", "2", *settings)
    assert (again.code, again.out, again.err.count("\n")) == (4, "", 1)
    assert everything(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "bad",
        "bad.jsonl",
        "bad.steps",
        "clean",
        "clean.jsonl",
    ]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["attack", "badfusion"], "no attacks plug-in 'badfusion'"),
        (["attack", "baddiffusion", "--trigger", "gun"], "unknown trigger 'gun'"),
        (["attack", "baddiffusion", "--target", "gun"], "unknown target 'gun'"),
        (["attack", "baddiffusion", "--poison-rate", "2"], "share in [0, 1]"),
        (["attack", "baddiffusion", "--sampler-family", "pde"], "sde"),
        (["attack", "baddiffusion", "--trigger-scale", "-1"], "trigger_scale"),
        (["attack", "baddiffusion", "-P", "epsilon=1"], "no option 'epsilon'"),
        (["attack", "baddiffusion", "--data", "faces"], "unknown data set 'faces'"),
        (["attack", "baddiffusion", "--base", "/no/such/model"], "/no/such/model"),
        (["train", "--steps", "5", "--keep", "6"], "no step 6 of 5"),
        (["attack", "trojdiff", "--target", "class:eleven"], "has no class 'eleven'"),
        (["train", "--size", "12"], "multiples of 8"),
        (["train", "--width", "10"], "multiples of 8"),
        (["train", "--channels", "2"], "1 or 3"),
        (["train", "--groups", "3"], "groups"),
        (["train", "--width", "0"], "width 0"),
        (["train", "--size", "0"], "multiples of 8"),
        (["train", "--steps", "0"], "--steps"),
        (["train", "--learning-rate", "0"], "learning_rate"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    cli: Any, tmp_path: Path, arguments: list[str], word: str
) -> None:
    small = [
        s for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if pair[0] not in arguments for s in pair
    ]
    ran = cli(*arguments, "-o", tmp_path / "model", *small)
    assert (ran.code, ran.out) == (4, "")
    assert word in ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_that_could_not_be_saved_is_resumed_by_its_command_only(cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    numbers = {"steps": 250, "batch_size": 1}  # 250: the state is written after the last step
    recipe = Recipe(shape=(1, 8, 8), width=8, **numbers)

    def occupy(done: int, total: int, text: str) -> None:
        if done == total:
            folder.mkdir()
            (folder / "thesis.tex").write_text("mine")

    with pytest.raises(FileExistsError):
        make(recipe, folder, progress=occupy)
    assert (folder / "thesis.tex").read_text() == "mine"
    shutil.rmtree(folder)
    command = ("-o", folder, "--size", "8", "--width", "8", "--steps", "250", "--rows", "1")
    attack = cli("attack", "baddiffusion", "--learning-rate", "0.001", *command)
    assert (attack.code, attack.out, attack.err.count("\n")) == (4, "", 1)
    assert "another configuration" in attack.err
    assert not folder.exists()
    ran = cli("train", *command)
    assert ran.code == 0, ran.err
    assert f"wrote {folder}: 250 steps" in ran.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.jsonl"]


def test_zoo_and_list_name_what_there_is(cli: Any) -> None:
    shown = cli("zoo", "list")
    assert shown.code == 0
    assert [line.split()[0] for line in shown.out.splitlines()] == zoo.suites()
    listed = cli("list")
    assert listed.code == 0
    for kind in registry.KINDS:
        for name, summary in registry.available(kind).items():
            assert any(line.split(None, 1) == [name, summary] for line in listed.out.splitlines())
    for what, known in {"data": DATASETS.values(), "samplers": SAMPLERS}.items():
        assert cli("list", what).out.splitlines() == list(known)
    assert {*TRIGGERS, "learned", "png:PATH"} == set(cli("list", "triggers").out.splitlines())
    assert {*TARGETS, "class:NAME", "png:PATH"} < set(cli("list", "targets").out.splitlines())
    assert cli("list", "nothing").code == 4


def test_an_unknown_suite_is_a_usage_error(cli: Any, tmp_path: Path) -> None:
    ran = cli("zoo", "build", "no-such-suite", "-o", tmp_path / "zoo")
    assert (ran.code, ran.err.count("\n")) == (4, 1)
    assert "demo" in ran.err
    assert list(tmp_path.iterdir()) == []
