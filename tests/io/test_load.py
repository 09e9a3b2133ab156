from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, PNDMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from backdrift.io.errors import CheckpointError, NotScannable
from backdrift.io.load import distinct_candidates, load, read_schedule
from backdrift.io.plan import plan
from backdrift.io.schedules import SchedulePlan


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_equals_from_pretrained(pipeline: Path, weights: Path, dtype: torch.dtype) -> None:
    change(weights, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    model = load(plan(pipeline))
    stock = UNet2DModel.from_pretrained(pipeline / "unet").to(torch.float32).eval()
    assert model.origin.dtype == str(dtype).removeprefix("torch.")
    mine, theirs = model.network.state_dict(), stock.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x, 10), stock(x, 10).sample)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_channels_and_predictions(unet: Any, tmp_path: Path, channels: int, prediction: str) -> None:
    network = unet(in_channels=channels, out_channels=channels)
    scheduler = DDPMScheduler(prediction_type=prediction)
    DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(tmp_path / "x")
    model = load(plan(tmp_path / "x"))
    assert (model.sample_shape, model.prediction_type) == ((channels, 8, 8), prediction)
    x = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    abar = scheduler.alphas_cumprod[500]
    with torch.no_grad():
        output = network.eval()(x, 500).sample
    noise = {
        "epsilon": output,
        "v_prediction": abar.sqrt() * output + (1 - abar).sqrt() * x,
        "sample": (x - abar.sqrt() * output) / (1 - abar).sqrt(),
    }
    torch.testing.assert_close(model(x, 500), noise[prediction])


@pytest.mark.parametrize(
    ("kind", "scheduler"), [("DDPMScheduler", DDPMScheduler), ("PNDMScheduler", PNDMScheduler)]
)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained"])
def test_schedules_equal_those_of_diffusers(
    pipeline: Path, edit: Any, kind: str, scheduler: Any, schedule: str
) -> None:
    settings: dict[str, Any] = {"num_train_timesteps": 200, "beta_start": 0.0002, "beta_end": 0.03}
    settings |= (
        {"trained_betas": torch.linspace(0.001, 0.1, 200).tolist()}
        if schedule == "trained"
        else {"beta_schedule": schedule}
    )
    stock = scheduler(**settings)
    stock.save_pretrained(pipeline / "scheduler")
    edit(pipeline / "model_index.json", scheduler=["diffusers", kind])
    found = read_schedule(plan(pipeline).schedule_config)
    torch.testing.assert_close(found.alphas_cumprod.float(), stock.alphas_cumprod)


def test_a_schedule_without_signal_is_not_covered() -> None:
    with pytest.raises(NotScannable, match="no signal"):
        read_schedule(SchedulePlan(beta_end=0.9, timesteps=10_000))


def test_attention_names_of_old_checkpoints(pipeline: Path, weights: Path) -> None:
    expected = load(plan(pipeline)).network.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [*tensors]:
            for new, before in old.items():
                if f".{new}." in name:
                    tensors[name.replace(new, before)] = tensors.pop(name)

    change(weights, rename)
    assert any(".query." in name for name in load_file(weights))
    found = load(plan(pipeline)).network.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    change(weights, lambda t: t.update({k.replace("query", "to_q"): v.clone() for k, v in t.items()}))
    with pytest.raises(CheckpointError, match="under two names"):
        load(plan(pipeline))


def test_missing_and_misshapen_tensors(pipeline: Path, weights: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["conv_in.bias"]
        tensors["conv_out.bias"] = torch.ones(7)

    change(weights, spoil)
    with pytest.raises(
        CheckpointError,
        match=r"1 missing \(first 'conv_in.bias'\), 1 of another shape",
    ) as caught:
        load(plan(pipeline))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_must_be_finite(pipeline: Path, weights: Path, value: float, dtype: torch.dtype) -> None:
    bad = torch.tensor([1.0, value, 0.0], dtype=dtype)
    change(weights, lambda t: t.update({"conv_out.bias": bad}))
    with pytest.raises(CheckpointError, match=r"'conv_out.bias' holds NaN or infinity"):
        load(plan(pipeline))


def test_large_finite_values_pass(pipeline: Path, weights: Path) -> None:
    change(weights, lambda t: t.update({"conv_out.bias": torch.full((3,), 3e38)}))
    load(plan(pipeline))
    change(weights, lambda t: t.update({"conv_out.bias": torch.full((3,), 1e300, dtype=torch.float64)}))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load(plan(pipeline))


def test_a_file_that_changes_after_planning(pipeline: Path, weights: Path) -> None:
    planned = plan(pipeline)
    size = weights.stat().st_size
    os.truncate(weights, size - 4)
    with pytest.raises(CheckpointError, match="short"):
        load(planned)
    os.truncate(weights, size)
    change(weights, lambda t: t.pop("conv_in.bias"))
    with pytest.raises(CheckpointError, match="changed during the scan"):
        load(planned)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_num_groups": 5}, "describes no UNet"),
        ({"block_out_channels": [8]}, "describes no UNet|at least"),
        ({"sample_size": 9}, "does not run"),
        ({"attention_head_dim": 3}, "describes no|does not"),
        ({"block_out_channels": [16384, 16384]}, "does not fit"),
        ({"layers_per_block": 64, "block_out_channels": [8] * 16}, "at least"),
    ],
)
def test_configs_that_do_not_fit_fail_fast(
    pipeline: Path, edit: Any, settings: dict[str, Any], message: str
) -> None:
    edit(pipeline / "unet" / "config.json", **settings)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        load(plan(pipeline))
    assert caught.value.exit_code == 2
    assert time.process_time() - start < 1


def test_absurd_configs_fail_before_anything_is_built(pipeline: Path, edit: Any) -> None:
    for key, value in (("layers_per_block", 20000), ("block_out_channels", [2**40, 2**40])):
        start = time.process_time()
        edit(pipeline / "unet" / "config.json", **{key: value})
        with pytest.raises(CheckpointError, match=f"{key} must be"):
            plan(pipeline)
        assert time.process_time() - start < 1
        edit(pipeline / "unet" / "config.json", **{key: ...})


def test_hash_is_of_the_content(pipeline: Path, weights: Path) -> None:
    before = load(plan(pipeline)).origin
    assert (before.weights, len(before.sha256)) == (
        "unet/diffusion_pytorch_model.safetensors",
        64,
    )
    change(weights, lambda t: t.update(dict(reversed(t.items()))))
    assert load(plan(pipeline)).origin.sha256 == before.sha256
    change(weights, lambda t: t["conv_out.bias"].add_(1e-3))
    assert load(plan(pipeline)).origin.sha256 != before.sha256


def test_variants_that_repeat_another_are_named(pipeline: Path, weights: Path) -> None:
    tensors = load_file(weights)
    for dtype, name in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")):
        path = weights.with_name(f"diffusion_pytorch_model.{name}.safetensors")
        save_file({k: v.to(dtype) for k, v in tensors.items()}, path)
    other = weights.with_name("diffusion_pytorch_model.non_ema.safetensors")
    save_file({k: v * 1.01 for k, v in tensors.items()}, other)
    planned = plan(pipeline)
    kept, repeats = distinct_candidates(planned)
    assert [candidate.files[0].path for candidate in kept] == [weights, other]
    assert {item.what.split(".")[1]: item.why for item in repeats} == {
        "bf16": f"same weights as {kept[0].name}, stored in bfloat16",
        "fp16": f"same weights as {kept[0].name}, stored in float16",
    }
    assert load(planned, kept[1]).origin.weights == kept[1].name


def test_numbers_that_only_a_finer_variant_holds_are_scanned(pipeline: Path, weights: Path) -> None:
    """A backdoor may hide in what rounding takes away."""
    tensors = load_file(weights)
    finer = weights.with_name("diffusion_pytorch_model.fp32.safetensors")
    save_file({k: v * (1 + 1e-4) for k, v in tensors.items()}, finer)
    save_file({k: (v * (1 + 1e-4)).bfloat16() for k, v in tensors.items()}, weights)
    kept, repeats = distinct_candidates(plan(pipeline))
    assert [candidate.files[0].path for candidate in kept] == [weights, finer]
    assert repeats == ()
