from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from safetensors.torch import save_file

from backdrift.io.errors import CheckpointError, NotScannable
from backdrift.io.load import load
from backdrift.io.plan import plan


def left_out(folder: Path) -> dict[str, str]:
    return {item.what: item.why for item in plan(folder).not_scanned}


def test_stock_pipeline(pipeline: Path) -> None:
    found = plan(pipeline)
    assert (found.path, found.format) == (str(pipeline), "DDPMPipeline")
    assert (found.sample_shape, found.declared, found.not_scanned) == ((3, 8, 8), False, ())
    (candidate,) = found.candidates
    assert (candidate.name, candidate.dtype) == (
        "unet/diffusion_pytorch_model.safetensors",
        "float32",
    )
    assert found.parameters == candidate.parameters > 1000
    assert "_class_name" not in found.network_config


def test_ddim_pipeline(unet: Any, tmp_path: Path) -> None:
    DDIMPipeline(unet=unet(), scheduler=DDIMScheduler(num_train_timesteps=50)).save_pretrained(
        tmp_path / "x"
    )
    found = plan(tmp_path / "x")
    assert (found.format, found.schedule_config.timesteps) == ("DDIMPipeline", 50)


def test_bare_unet(pipeline: Path) -> None:
    found = plan(pipeline / "unet")
    assert found.format == "UNet2DModel"
    assert [item.what for item in found.not_scanned] == ["noise schedule"]
    (pipeline / "unet" / "scheduler_config.json").write_text(
        '{"_class_name": "DDPMScheduler", "num_train_timesteps": 5}'
    )
    found = plan(pipeline / "unet")
    assert (found.not_scanned, found.schedule_config.timesteps) == ((), 5)


def test_old_flat_layout(pipeline: Path) -> None:
    for folder in ("unet", "scheduler"):
        shutil.copytree(pipeline / folder, pipeline, dirs_exist_ok=True)
        shutil.rmtree(pipeline / folder)
    found = plan(pipeline)
    assert found.candidates[0].name == "diffusion_pytorch_model.safetensors"
    assert found.not_scanned == ()


def test_variants_and_strangers(pipeline: Path, weights: Path) -> None:
    for name in ("fp16", "non_ema"):
        shutil.copy(weights, weights.with_name(f"diffusion_pytorch_model.{name}.safetensors"))
    shutil.copy(weights, weights.with_name("a_copy.safetensors"))
    save_file({"lora": torch.ones(2)}, weights.with_name("a_lora.safetensors"))
    assert [c.name.removeprefix("unet/") for c in plan(pipeline).candidates] == [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
        "a_copy.safetensors",
    ]
    (name,) = left_out(pipeline)
    assert name == "unet/a_lora.safetensors"


def test_what_is_left_out_is_named(pipeline: Path) -> None:
    (pipeline / "unet_ema").mkdir()
    (pipeline / "unet" / "old" / "deep").mkdir(parents=True)
    (pipeline / "samples").mkdir()
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "unet/model.onnx",
        "unet/modeling.py",
        "unet/diffusion_pytorch_model.bin.index.json",
        "scheduler/notes.xyz",
        "unet_ema/diffusion_pytorch_model.safetensors",
        "unet/old/deep/model.ckpt",
        "extra.safetensors",
        "LICENSE",
        "samples/grid.png",
    ):
        (pipeline / name).write_bytes(b"not read")
    found = left_out(pipeline)
    assert [*found] == sorted(found)
    assert {name: why.split(":")[0] for name, why in found.items()} == {
        "extra.safetensors": "weights that the pipeline does not use",
        "scheduler/notes.xyz": "not part of the pipeline",
        "unet/diffusion_pytorch_model.bin": "pickle weights",
        "unet/diffusion_pytorch_model.bin.index.json": "an index of split weights",
        "unet/model.onnx": "weights in another format",
        "unet/modeling.py": "code",
        "unet/old/": "a folder that the pipeline does not use, 1 files; weights or code in it",
        "unet_ema/": "a folder that the pipeline does not use, 1 files; weights or code in it",
    }


def test_names_in_the_plan_are_printable(pipeline: Path, weights: Path) -> None:
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.\x1b[2J.safetensors"))
    (pipeline / "evil\n\x1b.bin").write_bytes(b"")
    (pipeline / "\udcff.pkl").write_bytes(b"")
    found = plan(pipeline)
    names = [c.name for c in found.candidates] + [n.what for n in found.not_scanned]
    assert len(names) == 4
    assert all(map(str.isprintable, names))
    load(found, found.candidates[1])


@pytest.mark.parametrize(
    "change",
    [
        {"unet": ["os", "system"]},
        {"unet": ["diffusers", "AutoencoderKL"]},
        {"unet": "UNet2DModel"},
        {"unet": ...},
        {"scheduler": ["os", "system"]},
        {"scheduler": ["diffusers", "UNet2DModel"]},
        {"scheduler": ["diffusers", 3]},
        {"scheduler": ["diffusers"]},
        {"scheduler": ...},
        {"vae": ["diffusers", "AutoencoderKL"]},
        {"custom_pipeline": "x"},
        {"_class_name": ["pipeline", "DDPMPipeline"]},
        {"_class_name": ...},
    ],
)
def test_hostile_pipeline_index(pipeline: Path, edit: Any, change: dict[str, Any]) -> None:
    edit(pipeline / "model_index.json", **change)
    with pytest.raises(CheckpointError, match=r"model_index\.json") as caught:
        plan(pipeline)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "LDMSuperResolutionPipeline"}, "unconditional image models"),
        ({"_class_name": "ScoreSdeVePipeline"}, "with a DDPMScheduler is not covered"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "text-to-image"),
        ({"_class_name": "X", "text_encoder": ["transformers", "CLIPTextModel"]}, "text-to-image"),
        ({"scheduler": ["diffusers", "KarrasVeScheduler"]}, "variance preserving"),
    ],
)
def test_other_pipelines(pipeline: Path, edit: Any, change: dict[str, Any], message: str) -> None:
    edit(pipeline / "model_index.json", **change)
    with pytest.raises(NotScannable, match=message) as caught:
        plan(pipeline)
    assert caught.value.exit_code == 3


def test_foreign_unet_config(pipeline: Path, edit: Any) -> None:
    edit(pipeline / "unet" / "config.json", _class_name="AutoencoderKL")
    with pytest.raises(CheckpointError, match="AutoencoderKL") as caught:
        plan(pipeline)
    assert caught.value.exit_code == 2
    with pytest.raises(NotScannable, match="AutoencoderKL"):
        plan(pipeline / "unet")
    edit(pipeline / "unet" / "config.json", _class_name="UNet2DConditionModel")
    with pytest.raises(NotScannable, match="text-to-image"):
        plan(pipeline / "unet")


@pytest.mark.parametrize(
    "name", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"]
)
def test_damaged_configs(pipeline: Path, name: str) -> None:
    (pipeline / name).write_text('{"_class_name": "UNet2DModel", ')
    with pytest.raises(CheckpointError, match="not strict JSON"):
        plan(pipeline)
    if name != "model_index.json":
        (pipeline / name).rename(pipeline / "gone.txt")
        with pytest.raises(CheckpointError, match="is missing"):
            plan(pipeline)


def test_pickle_weights_only(pipeline: Path, weights: Path) -> None:
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(NotScannable, match=r"diffusion_pytorch_model\.bin"):
        plan(pipeline)


def test_nothing_to_scan(pipeline: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotScannable, match="is empty"):
        plan(tmp_path / "empty")
    (tmp_path / "empty" / "model.ckpt").write_text("")
    with pytest.raises(NotScannable, match=r"model\.ckpt"):
        plan(tmp_path / "empty")
    with pytest.raises(NotScannable, match="is a file"):
        plan(pipeline / "model_index.json")
    weights.unlink()
    with pytest.raises(NotScannable, match="nothing to scan"):
        plan(pipeline)


def test_too_many_and_too_large_weights(pipeline: Path, weights: Path) -> None:
    count = 3 * 10**9
    entry = {"dtype": "F16", "shape": [count], "data_offsets": [0, 2 * count]}
    header = json.dumps({"a": entry}).encode()
    with weights.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * count)
    with pytest.raises(CheckpointError, match="3000000000 values"):
        plan(pipeline)
    for number in range(17):
        save_file({"a": torch.ones(1)}, weights.with_name(f"{number}.safetensors"))
    with pytest.raises(NotScannable, match="more than 16"):
        plan(pipeline)


def test_headers_are_small_together(pipeline: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    monkeypatch.setattr("backdrift.io.weights.MAX_HEADERS_BYTES", 2 * one)
    shutil.copyfile(weights, weights.with_name("b.safetensors"))
    plan(pipeline)
    shutil.copyfile(weights, weights.with_name("c.safetensors"))
    with pytest.raises(CheckpointError, match="the headers up to") as caught:
        plan(pipeline)
    assert caught.value.rule == "BD301"


def test_names_that_print_alike(pipeline: Path, weights: Path) -> None:
    """Else one file could answer for the other in a baseline."""
    for name in ("\n", "\\n"):
        shutil.copyfile(weights, weights.with_name(f"diffusion_pytorch_model.{name}.safetensors"))
    with pytest.raises(CheckpointError, match="print alike") as caught:
        plan(pipeline)
    assert caught.value.rule == "BD105"


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="every part of a path is checked on Linux")
def test_a_folder_that_becomes_a_link_after_planning(pipeline: Path, weights: Path, tmp_path: Path) -> None:
    planned = plan(pipeline)
    weights.parent.rename(tmp_path / "elsewhere")
    weights.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="cannot open") as caught:
        load(planned)
    assert caught.value.rule == "BD108"


def test_learned_times_must_cover_the_schedule(pipeline: Path, edit: Any) -> None:
    edit(pipeline / "unet" / "config.json", time_embedding_type="learned", num_train_timesteps=999)
    with pytest.raises(CheckpointError, match="num_train_timesteps"):
        plan(pipeline)


def test_planning_does_not_import_torch(pipeline: Path) -> None:
    code = (
        "import sys, backdrift.io\n"
        "from backdrift.io.plan import plan\n"
        "plan(sys.argv[1])\n"
        "print([m for m in ('torch', 'diffusers', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(pipeline)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
