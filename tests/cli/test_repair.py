"""``repair``, ``amplify``, and repairs that act while sampling, on checkpoints of milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline
from safetensors import safe_open

from backdrift.cli.main import call
from backdrift.core.results import Evidence, Weights
from backdrift.io.evidence import save_evidence
from backdrift.io.load import load
from backdrift.io.plan import plan
from report.sample import report
from tiny import SHAPE

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SMALL = ["-P", "steps=2", "-P", "rounds=1", "-P", "images=8", "-P", "sampling_steps=2", "-P", "judged=4"]
SMALL += ["-P", "inversion_steps=2", "-P", "batch_size=4"]


def evidence(folder: Path, model: Path | None, shape: tuple[int, ...] = SHAPE) -> Path:
    """Of the weights of a model, or of none that is here."""
    stream = torch.Generator().manual_seed(2)
    trigger, target = (torch.randn(shape, generator=stream).numpy() for _ in range(2))
    none = torch.zeros(0, *shape).numpy()
    found = Evidence("of another name", trigger, target, none, none, "ddpm, 25 steps")
    digest = "0" * 64 if model is None else load(plan(model)).origin.sha256
    weights = Weights(file=found.weights, sha256=digest, dtype="float32", parameters=1)
    example = report()
    subject = example.subject.model_copy(update={"weights": [weights]})
    return save_evidence(example.model_copy(update={"subject": subject, "evidence": [found]}), folder)


def test_a_repaired_checkpoint_loads_in_stock_diffusers_and_says_what_it_is(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = evidence(tmp_path / "found", model)
    arguments = ["repair", "unlearn", str(model), "--evidence", str(found), "-o", str(out), *SMALL, "-q"]
    assert call([*arguments, "-P", "loss_margin=100"]) == 0
    pipeline = DDPMPipeline.from_pretrained(out)
    before = DDPMPipeline.from_pretrained(model)
    assert not torch.equal(pipeline.unet.conv_in.weight, before.unet.conv_in.weight)
    record = json.loads((out / "repair.json").read_text())
    assert record["method"] == "unlearn"
    assert record["measured"]["denoising loss, after / before"] > 0
    card = (out / "README.md").read_text()
    assert card.split("---\n")[2].startswith("WARNING: this model was backdoored, or suspected to be")
    assert "denoising loss" in card
    with safe_open(out / WEIGHTS, "pt") as file:
        assert "repaired by unlearn" in file.metadata()["backdoor"]
    assert plan(out).declared
    assert capsys.readouterr().out == ""


def test_a_repair_whose_own_check_fails_says_so_everywhere(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = str(evidence(tmp_path / "found", model))
    arguments = ["repair", "unlearn", str(model), "--evidence", found, "-o", str(out), *SMALL, "-q"]
    assert call([*arguments, "-P", "loss_margin=-1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"backdrift: {out} is not repaired: after 1 rounds: ")
    assert "utility does not hold" in error
    assert error.count("\n") == 1
    assert json.loads((out / "repair.json").read_text())["held"] is False
    assert "a repair of it failed: unlearn" in (out / "README.md").read_text()


def test_a_repair_that_takes_data_counts_them(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["-P", "steps=1", "-P", "pruning_steps=1", "-P", "samples=4", "-P", "batch_size=2"]
    arguments = ["repair", "anp", str(model), "-o", str(out), "--data", "digits", "--images", "12"]
    assert call([*arguments, *options]) == 0
    assert json.loads((out / "repair.json").read_text())["images"] == 12
    assert "channels pruned" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unlearn"], "scan MODEL --evidence"),
        (["unlearn", "--evidence", "nowhere"], "no evidence.json"),
        (["unlearn", "--evidence", "other"], "another model"),
        (["unlearn", "--evidence", "elsewhere"], "found in other weights"),
        (["unlearn", "--evidence", "nothing"], "scan MODEL --evidence"),
        (["clipping"], "changes no weights: give --repair clipping"),
        (["unlearn", "-o", "other"], "other exists: name a new folder"),
        (["elija"], "did you mean elijah?"),
        (["anp", "--images", "3"], "give --data"),
        (["anp", "--data", "digits", "--images", "99999"], "1797 images"),
    ],
)
def test_what_cannot_be_repaired_says_why_and_writes_nothing(
    tmp_path: Path,
    model: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    evidence(tmp_path / "other", model, (1, 6, 6))
    evidence(tmp_path / "elsewhere", None)
    save_evidence(report().model_copy(update={"evidence": []}), tmp_path / "nothing")
    assert call(["repair", arguments[0], str(model), "-o", "out", *arguments[1:]]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_samples_and_latents_under_a_countermeasure(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evidence(tmp_path / "found", model)
    common = ["sample", str(model), "--steps", "4", "-n", "2"]
    plain, clipped, filtered = (tmp_path / f"{name}.png" for name in ("plain", "clipped", "filtered"))
    assert call([*common, "-o", str(plain), "-q"]) == 0
    strip = ["--latents", str(tmp_path / "strip.png")]
    assert call([*common, "-o", str(clipped), "--repair", "clipping", "-P", "at=x_t", *strip]) == 0
    assert "clipping of x_t" in capsys.readouterr().out
    assert (tmp_path / "strip.png").exists()
    assert plain.read_bytes() != clipped.read_bytes()
    assert call([*common, "-o", str(filtered), "--repair", "input-filter", "--evidence", str(found)]) == 0
    assert call([*common, "-o", str(filtered), "--repair", "unlearn", "--evidence", str(found)]) == 4
    assert "unlearn changes weights: backdrift repair unlearn" in capsys.readouterr().err
    assert call([*common, "-o", str(filtered), "--evidence", str(found)]) == 4
    assert "settings of --repair" in capsys.readouterr().err
