"""Shards, averaged weights, single files, classes: what stock diffusers writes, loaded as it loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from backdrift.io.errors import CheckpointError, NoSuchClass, NotScannable
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.io.weights import Bounds

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def sharded(unet: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    DDPMPipeline(unet=unet(), scheduler=DDPMScheduler()).save_pretrained(folder, max_shard_size="30KB")
    assert (folder / "unet" / INDEX).is_file()
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    return folder


def edit_map(folder: Path, change: Any) -> None:
    path = folder / "unet" / INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_shards_are_one_model_and_hash_like_one_file(sharded: Path, pipeline: Path) -> None:
    planned, whole = plan(sharded), load(plan(pipeline))
    (candidate,) = planned.candidates
    assert candidate.name == f"unet/{INDEX}"
    assert (planned.not_scanned, planned.static) == ((), ())
    model = load(planned)
    mine, theirs = model.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert model.origin.sha256 == whole.origin.sha256


@pytest.mark.parametrize(
    "name", ["x.bin", "../../x.safetensors", "a/b.safetensors", "a\\b.safetensors", 3, None]
)
def test_an_index_names_safetensors_files_beside_it_and_nothing_else(sharded: Path, name: Any) -> None:
    edit_map(sharded, lambda m: m.update({"conv_in.bias": name}))
    with pytest.raises(CheckpointError, match="do not trust it") as caught:
        plan(sharded)
    assert (caught.value.exit_code, caught.value.rule) == (2, "BD304")


def test_index_and_shards_say_the_same(sharded: Path) -> None:
    original = (sharded / "unet" / INDEX).read_text()
    files = sorted(p.name for p in (sharded / "unet").glob("*.safetensors"))
    for change in (
        lambda m: m.pop("conv_in.bias"),
        lambda m: m.update({"evil\n": files[0]}),
        lambda m: m.update({"conv_in.bias": next(f for f in files if f != m["conv_in.bias"])}),
        lambda m: m.update({"conv_in.bias": "absent.safetensors"}),
    ):
        (sharded / "unet" / INDEX).write_text(original)
        edit_map(sharded, change)
        with pytest.raises(CheckpointError, match=r"disagree|missing") as caught:
            plan(sharded)
        assert caught.value.rule == "BD305"
        assert str(caught.value).isprintable()
    (sharded / "unet" / INDEX).unlink()
    with pytest.raises(CheckpointError, match="without an index"):
        plan(sharded)


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {}, "x": 1}']
)
def test_what_is_no_index(sharded: Path, text: str) -> None:
    (sharded / "unet" / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="weight_map"):
        plan(sharded)


def test_a_shard_that_changes_after_planning(sharded: Path) -> None:
    planned = plan(sharded)
    last = planned.candidates[0].files[-1].path
    tensors = load_file(last)
    save_file({name + "x": value for name, value in tensors.items()}, last)
    with pytest.raises(CheckpointError, match="changed during the scan"):
        load(planned)


def test_shards_of_something_else_are_named(pipeline: Path) -> None:
    save_file({"a": torch.ones(1)}, pipeline / "unet" / "other-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "other-00001-of-00001.safetensors"}}
    (pipeline / "unet" / "other.safetensors.index.json").write_text(json.dumps(index))
    planned = plan(pipeline)
    assert len(planned.candidates) == 1
    shard, own = planned.not_scanned
    assert (shard.what, own.what) == (
        "unet/other-00001-of-00001.safetensors",
        "unet/other.safetensors.index.json",
    )
    assert [(f.rule, f.file) for f in planned.static] == [("BD104", shard.what)]


def test_averaged_weights_of_a_training_script(pipeline: Path, unet: Any, edit: Any) -> None:
    network = unet()
    average = EMAModel(network.parameters(), model_cls=UNet2DModel, model_config=network.config)
    with torch.no_grad():
        network.conv_out.bias.add_(1)
    average.step(network.parameters())
    average.save_pretrained(pipeline / "unet_ema")
    planned = plan(pipeline)
    assert [c.name for c in planned.candidates] == [
        "unet/diffusion_pytorch_model.safetensors",
        "unet_ema/diffusion_pytorch_model.safetensors",
    ]
    assert planned.not_scanned == ()
    stock = UNet2DModel.from_pretrained(pipeline / "unet_ema").state_dict()
    mine = load(planned, planned.candidates[1]).network.state_dict()
    assert all(torch.equal(mine[name], stock[name]) for name in stock)
    assert load(plan(pipeline / "unet_ema")).sample_shape == (3, 8, 8)
    edit(pipeline / "unet_ema" / "config.json", dropout=0.5)
    assert [item.what for item in plan(pipeline).not_scanned] == ["unet_ema/"]
    assert [f.rule for f in plan(pipeline).static] == ["BD104"]


def test_a_single_file_with_its_config(pipeline: Path, weights: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(weights, weights.with_name("other.safetensors")))
    planned = plan(other)
    assert (planned.format, [c.name for c in planned.candidates]) == ("UNet2DModel", ["other.safetensors"])
    assert load(planned).origin.sha256 == load(plan(pipeline)).origin.sha256
    with pytest.raises(NotScannable, match=r"no config\.json"):
        plan(shutil.copy(weights, tmp_path / "alone.safetensors"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.safetensors").symlink_to(weights)
    with pytest.raises(CheckpointError, match="leaves the checkpoint"):
        plan(tmp_path / "elsewhere" / "link.safetensors")


@pytest.fixture
def classes(unet: Any, tmp_path: Path) -> Path:
    network = unet(num_class_embeds=3)
    DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "classes")
    return tmp_path / "classes"


@pytest.mark.parametrize("label", [0, 2])
def test_one_class_of_a_conditional_model(classes: Path, label: int) -> None:
    model = load(plan(classes), label=label)
    stock = UNet2DModel.from_pretrained(classes / "unet").eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stock(x, 10, class_labels=torch.tensor([label, label])).sample
    assert torch.equal(model(x, 10), expected)
    assert model.origin.weights.endswith(f"(class {label})")


def test_a_class_must_be_chosen_and_exist(classes: Path, pipeline: Path, edit: Any) -> None:
    assert plan(classes).classes == 3
    with pytest.raises(NotScannable, match="class-conditional"):
        load(plan(classes))
    with pytest.raises(NoSuchClass, match="classes 0 to 2"):
        load(plan(classes), label=3)
    with pytest.raises(NoSuchClass, match="no classes"):
        load(plan(pipeline), label=0)
    edit(classes / "unet" / "config.json", class_embed_type="identity")
    with pytest.raises(NotScannable, match="class_embed_type"):
        plan(classes)


def test_pndm_pipeline(pipeline: Path, edit: Any) -> None:
    edit(
        pipeline / "model_index.json", _class_name="PNDMPipeline", scheduler=["diffusers", "PNDMScheduler"]
    )
    edit(pipeline / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler")
    assert plan(pipeline).format == "PNDMPipeline"
    load(plan(pipeline))


def test_bounds(pipeline: Path, weights: Path) -> None:
    exact = Bounds(plan(pipeline).parameters, weights.stat().st_size)
    plan(pipeline, exact)
    for smaller in (Bounds(exact.parameters - 1, exact.size), Bounds(exact.parameters, exact.size - 1)):
        with pytest.raises(CheckpointError, match="--max-params") as caught:
            plan(pipeline, smaller)
        assert caught.value.rule == "BD306"
