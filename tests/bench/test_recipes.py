"""Every attack through a recipe: what is measured, and what the record says was planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backdrift.attacks.patterns import make_target, make_trigger
from backdrift.attacks.trojdiff import TrojDiff
from backdrift.bench import _planting
from backdrift.bench.recipes import Recipe, make
from backdrift.core.registry import available
from backdrift.core.trigger import TargetSet
from backdrift.data import load_dataset
from backdrift.evaluate import Plan, evaluate
from backdrift.groundtruth import load_backdoor
from backdrift.io.load import load
from backdrift.io.plan import plan

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
OPTIONS: dict[str, dict[str, Any]] = {
    "baddiffusion": {"poison_rate": 0.5},
    "villandiffusion": {"poison_rate": 0.5, "psi": 0.5, "sampler_family": "ode"},
    "trojdiff": {"poison_rate": 0.5, "kind": "patch", "gamma": 0.25},
    "invisible": {"poison_rate": 0.5, "inner_noises": 2, "inner_timesteps": 2},
    "guarded": {"poison_rate": 0.5},
    "clean": {},
}


@pytest.fixture(autouse=True)
def short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_planting, "STEPS", 4)
    monkeypatch.setattr(_planting, "SAMPLES", 64)


def recipe(attack: str | None, **changes: Any) -> Recipe:
    options = {"trigger": "learned" if attack == "invisible" else "white-patch", "target": "hat"}
    small = {"shape": (1, 8, 8), "width": 8, "steps": 2, "batch_size": 4}
    planted = {"attack": attack, "options": OPTIONS[attack], **options} if attack else {}
    return Recipe(**{**small, **planted, **changes})


def test_every_attack_is_here() -> None:
    assert set(OPTIONS) == set(available("attacks"))


@pytest.mark.parametrize("attack", [name for name in OPTIONS if name != "clean"])
def test_an_attack_is_measured_and_recorded(tmp_path: Path, attack: str) -> None:
    cost = make(recipe(attack), tmp_path / "model")
    planted = load_backdoor(tmp_path / "model")
    record = planted.record
    assert plan(tmp_path / "model").declared is True
    assert record.attack == attack
    assert record.config["poison_rate"] == record.poison_rate == 0.5
    assert len(record.poisoned_rows) == 1797 // 2
    assert record.clean_rows is None
    assert record.measured == json.loads(json.dumps(cost["measured"]))
    assert {"asr", "rate_without_trigger", "threshold", "n", "sampler", "seed"} <= set(cost["measured"])
    assert record.trigger_norm == pytest.approx(float(planted.shift.norm()))


def test_trojdiff_records_mu_and_is_measured_through_its_own_sampler(tmp_path: Path) -> None:
    make(recipe("trojdiff"), tmp_path / "model")
    planted = load_backdoor(tmp_path / "model")
    patch = make_trigger("white-patch", (1, 8, 8))
    assert torch.equal(planted.shift, 0.75 * patch.shift)
    assert torch.equal(planted.mean_shift, planted.shift)
    assert planted.noise_scale is not None
    assert sorted(planted.noise_scale.unique().tolist()) == [0.25, 1.0]
    assert planted.record.measured["sampler"] == "the attack's own ddpm, 4 steps"
    assert TrojDiff(**planted.record.config).gamma == 0.25


def test_the_rows_of_a_disjoint_split_are_recorded(tmp_path: Path) -> None:
    options = {"poison_rate": 0.2, "clean_rate": 0.3, "mode": "disjoint"}
    make(recipe("baddiffusion", options=options), tmp_path / "model")
    record = json.loads((tmp_path / "model" / "backdoor.json").read_text())
    assert (len(record["poisoned_rows"]), len(record["clean_rows"])) == (359, 539)
    assert not set(record["poisoned_rows"]) & set(record["clean_rows"])


@pytest.mark.parametrize(
    ("attack", "options"),
    [("clean", {}), ("baddiffusion", {"poison_rate": 0}), ("trojdiff", {"poison_rate": 0})],
)
def test_without_poison_it_is_the_clean_model_and_says_so(
    tmp_path: Path, attack: str, options: dict[str, Any]
) -> None:
    cost = make(recipe(attack, options=options), tmp_path / "twin")
    make(recipe(None), tmp_path / "clean")
    twin, clean = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("twin", "clean"))
    assert twin == clean
    assert plan(tmp_path / "twin").declared is False
    assert not (tmp_path / "twin" / "backdoor.json").exists()
    assert 0 <= cost["measured"]["asr"] <= 1


def test_a_picture_with_alpha_as_trigger_and_target_leaves_no_path_behind(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:, 4:] = (255, 255, 255, 255)
    Image.fromarray(pixels).save(tmp_path / "half.png")
    name = f"png:{tmp_path / 'half.png'}"
    make(recipe("baddiffusion", trigger=name, target=name), tmp_path / "model")
    planted = load_backdoor(tmp_path / "model")
    assert torch.equal(planted.shift, make_trigger(name, (1, 8, 8)).shift)
    assert planted.shift[0, 0].tolist() == [-1.0] * 4 + [1.0] * 4
    assert torch.equal(planted.target.image, make_target(name, (1, 8, 8)))
    assert (planted.record.trigger, planted.record.target) == ("png:half.png", "png:half.png")
    assert planted.record.composite is True
    for path in (tmp_path / "model").rglob("*.*"):
        assert str(tmp_path).encode() not in path.read_bytes()


DIGITS = load_dataset("digits", (1, 8, 8))


@pytest.mark.parametrize(
    ("target", "count"), [("class:3", 183), ("data:shapes", 2048), ("data:shapes@circle", None)]
)
def test_a_set_of_targets_is_recorded_and_evaluated(tmp_path: Path, target: str, count: int | None) -> None:
    cost = make(recipe("trojdiff", target=target), tmp_path / "model")
    planted = load_backdoor(tmp_path / "model")
    assert isinstance(planted.target, TargetSet)
    assert planted.record.hit_threshold is None
    assert planted.record.target == target
    if count is not None:
        assert len(planted.target.images) == count
    if target == "class:3":
        assert DIGITS.labels is not None
        assert torch.equal(planted.target.images, DIGITS.images[DIGITS.labels == 3])
    assert 0 <= cost["measured"]["asr"] <= 1
    model = load(plan(tmp_path / "model"))
    found = evaluate(model, planted, DIGITS.images, Plan(20, steps=2))
    assert [m.name for m in found.measures][:3] == ["ASR", "hits without trigger", "FD(random-conv)"]
    assert "nearest image" in found.hit
    with pytest.raises(ValueError, match="give the data"):
        evaluate(model, planted, None, Plan(20, steps=2))


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("class:eleven", "has no class 'eleven'"),
        ("class:10", "has no class '10'"),
        ("data:photos@cat", "has no class .cat.; it has china, flower"),
        ("data:nothing", "unknown data set"),
        ("hate", "known: "),
    ],
)
def test_a_target_that_is_not_there_is_refused(tmp_path: Path, target: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make(recipe("trojdiff", target=target), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_kept_on_the_way_is_the_model_of_that_step_and_says_so(tmp_path: Path) -> None:
    make(recipe("baddiffusion", steps=3, keep=(1, 2)), tmp_path / "model")
    kept = tmp_path / "model.steps"
    assert sorted(p.name for p in kept.iterdir()) == ["000001", "000002"]
    record = load_backdoor(kept / "000002").record
    assert (record.training["steps"], record.measured) == (2, {})
    assert plan(kept / "000002").declared is True
    assert "not measured" in (kept / "000002" / "README.md").read_text()
    whole, part = ((folder / WEIGHTS).read_bytes() for folder in (tmp_path / "model", kept / "000002"))
    assert whole != part
    make(recipe("baddiffusion", steps=3), tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == whole


def test_a_weak_backdoor_is_trained_on_and_kept_when_it_stays_weak(tmp_path: Path) -> None:
    cost = make(recipe("baddiffusion", rounds=3, until=0.9), tmp_path / "weak")
    assert cost["rounds"] == 3
    assert cost["evaluations"] >= 3 * 3 * 2 * 4
    record = load_backdoor(tmp_path / "weak").record
    assert record.training["rounds"] == 3
    assert record.measured["asr"] < 0.9
    once = make(recipe("baddiffusion", rounds=3, until=1e-9), tmp_path / "once")
    assert once["rounds"] == (1 if once["measured"]["asr"] else 3)
    first = make(recipe("baddiffusion"), tmp_path / "first")
    assert first["rounds"] == 1
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("weak", "first")]
    assert weights[0] != weights[1]
    again = make(recipe("baddiffusion", rounds=3, until=0.9), tmp_path / "again")
    assert again["measured"] == cost["measured"]
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == weights[0]
