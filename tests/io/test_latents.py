"""Latent pipelines as stock diffusers writes them: planned, loaded, decoded, saved, refused."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LDMPipeline, VQModel
from safetensors.torch import load_file, save_file

from backdrift.core.sampling import sample
from backdrift.io.errors import CheckpointError, NotScannable
from backdrift.io.latents import VQ_KEYS, check_parts, parse_codec
from backdrift.io.load import load
from backdrift.io.plan import inspect as look
from backdrift.io.plan import network_pickles, plan
from backdrift.io.save import save_pipeline
from backdrift.io.tensors import content_hash
from backdrift.io.weights import Bounds

LATENT = (3, 8, 8)
VQ_WEIGHTS = Path("vqvae/diffusion_pytorch_model.safetensors")


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, *LATENT, generator=torch.Generator().manual_seed(1))


def test_every_setting_of_the_class_is_known() -> None:
    assert {*inspect.signature(VQModel.__init__).parameters} - {"self"} == VQ_KEYS


def test_the_plan_of_a_stock_pipeline(latent: Path) -> None:
    planned = plan(latent)
    assert (planned.format, planned.sample_shape) == ("LDMPipeline", LATENT)
    assert (planned.not_scanned, planned.static) == ((), ())
    assert planned.codec is not None
    assert planned.codec.image_shape == (1, 16, 16)
    assert [c.name for c in planned.candidates] == ["unet/diffusion_pytorch_model.safetensors"]
    assert [w.file for w in look(latent).weights] == [planned.candidates[0].name, str(VQ_WEIGHTS)]


def test_it_draws_what_the_stock_pipeline_draws(latent: Path) -> None:
    """The stock pipeline scales, decodes and maps to [0, 1] by itself."""
    model, stock = load(plan(latent)), LDMPipeline.from_pretrained(latent)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(2, *LATENT, generator=generator)
    expected = stock(
        batch_size=2, generator=generator.manual_seed(3), num_inference_steps=100, output_type="np"
    ).images
    with torch.no_grad():
        drawn = model.decode(sample(model, model.schedule, start, sampler="ddim", steps=100))
    assert (model.sample_shape, model.image_shape) == (LATENT, (1, 16, 16))
    mine = (drawn / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(mine, torch.tensor(expected), atol=1e-4, rtol=0)


def test_encode_and_decode_in_parts_are_those_of_the_network(latent: Path) -> None:
    model, stock = load(plan(latent)), VQModel.from_pretrained(latent / "vqvae").eval()
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        encoded = stock.encode(images).latents * 4.0
        decoded = stock.decode(noise(5) / 4.0).sample
    model.codec._batch = 2  # type: ignore[union-attr]
    torch.testing.assert_close(model.encode(images), encoded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(noise(5)), decoded, atol=1e-5, rtol=1e-5)
    assert model.extent == pytest.approx(4.0 * float(stock.quantize.embedding.weight.detach().abs().max()))


@pytest.mark.parametrize(("far", "planted"), [(100.0, 1), (1e6, 16), (30.0, 16)])
def test_entries_that_nothing_takes_do_not_widen_the_range(latent: Path, far: float, planted: int) -> None:
    """Unused ones cost an attacker nothing, however many; the model decodes as before."""
    before = load(plan(latent))
    tensors = load_file(latent / VQ_WEIGHTS)
    entries = tensors["quantize.embedding.weight"]
    unused = torch.full((planted, entries.shape[1]), far / 4.0) * torch.randn(planted, 1).sign()
    tensors["quantize.embedding.weight"] = torch.cat([entries, unused])
    save_file(tensors, latent / VQ_WEIGHTS)
    config = latent / "vqvae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_vq_embeddings": 32 + planted}))
    after = load(plan(latent))
    assert after.extent == pytest.approx(before.extent)
    torch.testing.assert_close(after.decode(noise(2)), before.decode(noise(2)))


def test_what_an_attacker_can_still_widen_the_range_to(latent: Path) -> None:
    """Entries all around, as far out as some probe comes."""
    tensors = load_file(latent / VQ_WEIGHTS)
    ring = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    ring /= ring.norm(dim=1, keepdim=True)
    reached = []
    for radius in (8.0, 12.0, 16.0, 24.0):
        tensors["quantize.embedding.weight"] = torch.cat([ring[:16] / 4, radius / 4 * ring[16:]])
        save_file(tensors, latent / VQ_WEIGHTS)
        reached.append(load(plan(latent)).extent)
    assert max(reached) < 16
    assert reached[-1] < 1.01


def test_the_hash_is_that_of_both_networks(latent: Path) -> None:
    planned = plan(latent)
    assert planned.codec is not None
    before = load(planned).origin.sha256
    assert before == content_hash(planned.candidates[0], planned.codec.weights)
    tensors = load_file(latent / VQ_WEIGHTS)
    tensors["decoder.conv_out.bias"] += 1
    save_file(tensors, latent / VQ_WEIGHTS)
    assert load(plan(latent)).origin.sha256 != before


def test_saved_again_it_is_the_same_stock_pipeline(latent: Path, tmp_path: Path) -> None:
    model = load(plan(latent))
    save_pipeline(model, tmp_path / "again", notice="WARNING: x")
    again = plan(tmp_path / "again")
    assert (again.format, again.declared, again.static) == ("LDMPipeline", True, ())
    assert load(again).origin.sha256 == model.origin.sha256
    stock = LDMPipeline.from_pretrained(tmp_path / "again")
    decoded = stock.vqvae.eval().decode(noise(2) / stock.vqvae.config.scaling_factor).sample
    torch.testing.assert_close(model.decode(noise(2)), decoded)


def test_missing_and_extra_tensors_and_numbers_that_are_none(latent: Path) -> None:
    tensors = load_file(latent / VQ_WEIGHTS)
    save_file({**tensors, "evil": torch.ones(2)}, latent / VQ_WEIGHTS)
    findings = load(plan(latent)).origin.findings
    assert [(f.rule, f.file) for f in findings] == [("BD308", str(VQ_WEIGHTS))]
    for change, rule in (({"decoder.conv_in.bias": torch.tensor([torch.nan] * 8)}, "BD401"), ({}, "BD307")):
        wrong = {**tensors, **change}
        if not change:
            del wrong["quantize.embedding.weight"]
        save_file(wrong, latent / VQ_WEIGHTS)
        with pytest.raises(CheckpointError, match="vqvae") as caught:
            load(plan(latent))
        assert caught.value.rule == rule


def test_pickle_weights_of_the_vqvae(latent: Path) -> None:
    (latent / VQ_WEIGHTS).rename(latent / "vqvae" / "diffusion_pytorch_model.bin")
    with pytest.raises(NotScannable, match="only pickle weights") as caught:
        plan(latent)
    assert caught.value.rule == "BD101"
    assert [*network_pickles(latent)] == ["vqvae/diffusion_pytorch_model.bin"]


def test_converted_weights_of_the_vqvae_stand_in_for_the_pickle(latent: Path, tmp_path: Path) -> None:
    expected = load(plan(latent)).origin.sha256
    name = "vqvae/diffusion_pytorch_model.bin"
    (latent / VQ_WEIGHTS).rename(tmp_path / "0.safetensors")
    (latent / name).write_bytes(b"not opened")
    planned = plan(latent, converted={name: tmp_path / "0.safetensors"})
    assert planned.codec is not None
    assert planned.codec.weights.name == name
    assert [c.name for c in planned.candidates] == ["unet/diffusion_pytorch_model.safetensors"]
    assert load(planned).origin.sha256 == expected
    assert [(f.rule, f.file) for f in planned.static] == [("BD502", name)]


def test_other_weights_of_the_vqvae_are_named_and_not_used(latent: Path) -> None:
    other = latent / "vqvae" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(latent / VQ_WEIGHTS, other)
    planned = plan(latent)
    assert [item.what for item in planned.not_scanned] == [f"vqvae/{other.name}"]
    assert [(f.rule, f.file) for f in planned.static] == [("BD104", f"vqvae/{other.name}")]


def test_bounds_hold_for_both_networks_together(latent: Path) -> None:
    planned = plan(latent)
    assert planned.codec is not None
    both = planned.parameters + planned.codec.weights.parameters
    plan(latent, Bounds(both))
    with pytest.raises(CheckpointError, match="--max-params") as caught:
        plan(latent, Bounds(both - 1))
    assert caught.value.rule == "BD306"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"_class_name": "AutoencoderKL"}, "BD203"),
        ({"_class_name": ["vqvae", "VQModel"]}, "BD204"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "BD204"),
        ({"unknown": 1}, "BD205"),
        ({"num_vq_embeddings": 1 << 40}, "BD206"),
        ({"scaling_factor": 0}, "BD206"),
        ({"scaling_factor": True}, "BD206"),
        ({"vq_embed_dim": 4}, "BD206"),
        ({"out_channels": 3}, "BD206"),
        ({"block_out_channels": [8]}, "BD206"),
        ({"block_out_channels": [8] * 12, "down_block_types": ["DownEncoderBlock2D"] * 12,
          "up_block_types": ["UpDecoderBlock2D"] * 12}, "BD206"),
        ({"block_out_channels": [8, 7]}, "BD404"),
        ({"block_out_channels": [8, 16]}, "BD307"),
        ({"layers_per_block": 60}, "BD307"),
        ({"norm_type": "spatial"}, "BD004"),
        ({"up_block_types": ["UpDecoderBlock2D", "UpBlock2D"]}, "BD004"),
    ],
)  # fmt: skip
def test_hostile_configs(latent: Path, edit: Any, change: dict[str, Any], rule: str) -> None:
    edit(latent / "vqvae" / "config.json", **change)
    with pytest.raises(CheckpointError) as caught:
        load(plan(latent))
    assert caught.value.rule == rule
    assert str(caught.value).isprintable()


def test_parts_that_are_missing(latent: Path, edit: Any) -> None:
    (latent / "vqvae" / "config.json").rename(latent / "gone.json")
    with pytest.raises(CheckpointError, match=r"vqvae/config\.json is missing"):
        plan(latent)
    (latent / "gone.json").rename(latent / "vqvae" / "config.json")
    edit(latent / "model_index.json", vqvae=...)
    with pytest.raises(CheckpointError, match="must name unet, scheduler, vqvae") as caught:
        plan(latent)
    assert caught.value.rule == "BD110"


@pytest.mark.parametrize("part", ["unet", "vqvae"])
def test_conditional_and_other_latent_models_are_not_covered(part: str) -> None:
    index = {"unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]}
    check_parts(index)
    other = {"unet": "UNet2DConditionModel", "vqvae": "AutoencoderKL"}[part]
    with pytest.raises(NotScannable, match=other):
        check_parts({**index, part: ["diffusers", other]})
    with pytest.raises(CheckpointError, match="do not trust it"):
        check_parts({**index, part: ["evil", other]})


def test_settings_that_a_config_leaves_out_are_those_of_the_class() -> None:
    with torch.device("meta"):
        stock = VQModel()
        images = stock.decode(torch.empty(1, 3, 8, 8)).sample
    assert parse_codec({"_class_name": "VQModel"}, (3, 8, 8), "x") == ({}, tuple(images.shape[1:]))
