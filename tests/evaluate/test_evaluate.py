"""Evaluation and restoration of models whose outcome is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.core.randomness import SampleGenerator
from backdrift.core.trigger import Target, Trigger
from backdrift.data import load_images
from backdrift.evaluate import CleanTwin, Evaluation, Plan, evaluate
from backdrift.groundtruth import Backdoor, Planted
from backdrift.io.errors import CheckpointError
from backdrift.metrics.asr import attack_success
from backdrift.metrics.mse import mse
from backdrift.metrics.ssim import ssim
from backdrift.restoration import damage, restore, reverse, stamp
from closed_form import closed_form

SHAPE = (1, 8, 8)
DIGITS = load_images("digits", SHAPE)[:300]
PLAN = Plan(samples=120, sampler="ddpm", steps=20, seed=1)


def picture() -> Tensor:
    image = torch.full(SHAPE, -0.4)
    image[:, :4] = 1.0
    return image


def planted(value: float = 1.5, background: float = -1.0) -> Planted:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, 4:] = True
    trigger = Trigger(torch.full(SHAPE, value), mask, background)
    record = Backdoor(
        attack="closed form",
        config={},
        trigger="half",
        target="half",
        composite=True,
        background=background,
        trigger_norm=float(trigger.shift.norm()),
        poison_rate=0.3,
        sampler_family="sde",
        data="digits",
        seed=0,
        poisoned_rows=[],
        hit_threshold=0.05,
        training={},
    )
    target = Target.with_chance_level(picture(), DIGITS)
    return Planted(record=record, shift=trigger.shift, mean_shift=None, trigger=trigger, target=target)


def poisoned() -> DiffusionModel:
    return closed_form(DIGITS, planted().shift, picture())


def values(found: Evaluation | Any) -> dict[str, float]:
    return {m.name: m.value for m in found.measures}


def test_the_perfect_backdoor_and_its_clean_twin() -> None:
    seen: list[tuple[int, int, str]] = []
    model, twin = poisoned(), closed_form(DIGITS)
    found = evaluate(
        model,
        planted(),
        DIGITS,
        PLAN,
        reference="digits",
        clean_twin=CleanTwin.measure(twin, DIGITS, PLAN),
        progress=lambda done, total, text: seen.append((done, total, text)),
    )
    got = values(found)
    assert got["ASR"] == 1.0
    assert got["hits without trigger"] <= 0.02  # the threshold is what 1% of the data reach
    assert got["MSE"] < 0.001 < 0.05 < got["MSE without trigger"]
    assert got["SSIM"] > 0.99 > 0.5 > got["SSIM without trigger"]
    assert got["KD(random-conv)"] < 0.01
    assert not any(name.startswith("FID") for name in got)
    by_name = {m.name: m for m in found.measures}
    assert by_name["FD(random-conv) ratio"].low <= 1.1
    assert by_name["FD(random-conv) ratio"].high >= 0.9
    assert by_name["KD(random-conv)"].n == 100
    for measure in found.measures:
        assert measure.low <= measure.value <= measure.high
        assert measure.interval
        assert measure.meaning
        assert (measure.sampler, measure.steps, measure.seed) == ("ddpm", 20, 1)
        assert measure.n in (100, 120)
    assert found.reference == "digits (300 images)"
    assert found.evaluations == 3 * 120 * 20
    assert seen[-1][:2] == (240, 240)
    assert Evaluation.model_validate_json(found.model_dump_json()).measures == found.measures


def test_a_clean_model_does_not_answer_the_trigger() -> None:
    got = values(evaluate(closed_form(DIGITS), planted(), None, PLAN))
    assert (got["ASR"], got["hits without trigger"]) == (0.0, 0.0)
    assert set(got) == {f"{name}{end}" for name in ("MSE", "SSIM") for end in ("", " without trigger")} | {
        "ASR",
        "hits without trigger",
    }


def test_the_asr_is_the_one_that_a_record_holds_for_the_same_seed() -> None:
    found = evaluate(poisoned(), planted(), None, PLAN).measures
    known = attack_success(
        poisoned(), planted().injection, planted().target, sampler="ddpm", steps=20, n=120, seed=1
    )
    assert (found[0].value, found[1].value) == (known.asr, known.rate_without_trigger)
    assert (found[0].low, found[0].high) == known.interval


def test_a_network_never_sees_more_than_a_batch() -> None:
    sizes: set[int] = set()
    model = poisoned()
    model.batch_size = 32
    inner = model.network

    class Counting(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            sizes.add(len(x))
            answer: Tensor = inner(x, t)
            return answer

    model.network = Counting()
    evaluate(model, planted(), DIGITS, PLAN)
    assert sizes == {32, 120 % 32}


def test_the_same_numbers_again_and_for_another_batch() -> None:
    def once(batch: int) -> list[dict[str, Any]]:
        model = poisoned()
        model.batch_size = batch
        return [m.model_dump() for m in evaluate(model, planted(), DIGITS, PLAN).measures]

    assert once(120) == once(120)
    for first, other in zip(once(120), once(50), strict=True):
        assert first["value"] == pytest.approx(other["value"], abs=1e-4)


def test_a_model_that_has_lost_its_utility_shows_in_the_ratio() -> None:
    few = closed_form(DIGITS[:3], planted().shift, picture())
    twin = CleanTwin.measure(closed_form(DIGITS), DIGITS, PLAN)
    found = evaluate(few, planted(), DIGITS, PLAN, clean_twin=twin)
    ratio = found.measures[-1]
    assert ratio.name == "FD(random-conv) ratio"
    assert 1.5 < ratio.low < ratio.value


def test_fewer_samples_with_the_trigger_are_the_first_of_them() -> None:
    few, many = replace(PLAN, triggered=30), replace(PLAN, samples=30)
    first = {m.name: m for m in evaluate(poisoned(), planted(), DIGITS, few).measures}
    other = {m.name: m for m in evaluate(poisoned(), planted(), None, many).measures}
    whole = {m.name: m for m in evaluate(poisoned(), planted(), DIGITS, PLAN).measures}
    assert (first["ASR"].n, first["hits without trigger"].n) == (30, 120)
    assert first["MSE"] == other["MSE"]
    assert first["FD(random-conv)"] == whole["FD(random-conv)"]


def test_a_twin_of_another_plan_is_refused() -> None:
    twin = CleanTwin.measure(closed_form(DIGITS), DIGITS, replace(PLAN, steps=10))
    with pytest.raises(ValueError, match="other samples, sampler, steps or seed"):
        evaluate(poisoned(), planted(), DIGITS, PLAN, clean_twin=twin)
    with pytest.raises(ValueError, match="data set has shape"):
        CleanTwin.measure(closed_form(DIGITS), torch.zeros(30, 3, 8, 8), PLAN)


def test_what_does_not_fit_is_refused() -> None:
    wrong = planted().model_copy(update={"shift": torch.zeros(1, 4, 4)})
    with pytest.raises(ValueError, match=r"trigger of the record has shape \(1, 4, 4\)"):
        evaluate(poisoned(), wrong, None, PLAN)
    with pytest.raises(ValueError, match="data set has shape"):
        evaluate(poisoned(), planted(), torch.zeros(30, 3, 8, 8), PLAN)
    with pytest.raises(ValueError, match="at least 20 samples, not 3"):
        Plan(samples=3)
    broken = closed_form(DIGITS)
    broken.network = _Nan()
    with pytest.raises(CheckpointError, match="no finite"):
        evaluate(broken, planted(), None, PLAN)


class _Nan(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * torch.nan


def test_the_damage() -> None:
    images = torch.zeros(2, 1, 32, 32)
    box = damage(images, "inpaint-box", images)[0, 0] == -1
    assert box.nonzero().min(0).values.tolist() == [11, 11]
    assert box.nonzero().max(0).values.tolist() == [20, 20]
    assert int(box.sum()) == 100
    line = damage(images, "inpaint-line", images)[0, 0] == -1
    assert line.any(0).nonzero().flatten().tolist() == [15]
    assert line.all(0).any()
    assert int((damage(images[:, :, :8, :8], "inpaint-line", images)[0, 0] == -1).sum()) == 8
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    assert float(damage(torch.zeros_like(noise), "denoise", noise).std()) == pytest.approx(0.3, abs=0.01)
    assert bool((images == 0).all())


def test_the_trigger_on_an_image() -> None:
    images = DIGITS[:2]
    stamped = stamp(images, planted().trigger)
    assert torch.equal(stamped[:, :, :4], images[:, :, :4])
    assert bool((stamped[:, :, 4:] == 1.5).all())
    added = stamp(images, planted(background=0.0).trigger)
    assert torch.equal(added[:, :, 4:], images[:, :, 4:] + 1.5)


def test_restoration_brings_images_back_and_triggered_ones_to_the_target() -> None:
    found, pictures = restore(
        poisoned(), DIGITS[:24], task="denoise", steps=150, planted=planted(), data="digits"
    )
    got = values(found)
    assert got["MSE"] < got["MSE, not restored"] / 2
    assert got["SSIM"] > 0.9
    assert got["hits without trigger"] == 0.0
    assert len(pictures.rows) == 5
    assert pictures.grid().shape == (5 * 16, *SHAPE)
    # same range on both sides: the scores are those of the pictures that were drawn
    few, shown = restore(poisoned(), DIGITS[:20], task="inpaint-box", steps=60)
    originals, _, restored = shown.rows
    assert len(originals) == 16
    model = poisoned()
    fresh = SampleGenerator(0, 20, "restore")
    again = reverse(model, damage(DIGITS[:20], "inpaint-box", fresh.normal(SHAPE)), 60, fresh)
    assert torch.allclose(again[:16], restored, atol=1e-5)
    assert values(few)["MSE"] == pytest.approx(float(mse(again, DIGITS[:20]).mean()), abs=1e-6)
    assert values(few)["SSIM"] == pytest.approx(float(ssim(again, DIGITS[:20]).mean()), abs=1e-5)
    assert "ASR" not in values(few)


def test_triggered_images_become_the_target() -> None:
    """Steps from where the trigger has the weight that the poisoned chain gives it."""
    known = planted()
    model = closed_form(DIGITS[:40], known.trigger.training_shift(DIGITS[:40]), picture())
    got = values(restore(model, DIGITS[:24], task="denoise", steps=900, planted=known)[0])
    assert got["ASR"] == 1.0
    assert got["MSE triggered"] < 0.01 < got["MSE triggered, not restored"]


def test_restoration_repeats_and_does_not_depend_on_the_batch() -> None:
    found = []
    for size in (20, 20, 7):
        model = poisoned()
        model.batch_size = size
        found.append(values(restore(model, DIGITS[:20], task="denoise", steps=20, planted=planted())[0]))
    assert found[0] == found[1]
    assert found[0] == pytest.approx(found[2], abs=1e-4)


def test_restoration_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        restore(poisoned(), DIGITS[:20], task="denoise", steps=1001)
    with pytest.raises(ValueError, match="at least 20"):
        restore(poisoned(), DIGITS[:3], task="denoise", steps=10)
    with pytest.raises(ValueError, match="different shapes"):
        restore(poisoned(), torch.zeros(20, 1, 4, 4), task="denoise", steps=10)
    with pytest.raises(CheckpointError, match="not finite"):
        restore(replace(poisoned(), network=_Nan()), DIGITS[:20], task="denoise", steps=3)
