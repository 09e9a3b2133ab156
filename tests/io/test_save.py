from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors import safe_open
from torch import nn

from backdrift.core.model import DiffusionModel
from backdrift.core.schedule import NoiseSchedule
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.io.save import save_pipeline
from backdrift.io.weights import STANDARD_WEIGHTS


@pytest.fixture
def model(unet: Any) -> DiffusionModel:
    return DiffusionModel(unet().eval(), NoiseSchedule.linear(), (3, 8, 8))


def test_the_same_model_is_saved_as_the_same_bytes(model: DiffusionModel, tmp_path: Path) -> None:
    saved = [save_pipeline(model, tmp_path / str(n), notice="a notice") for n in range(8)]
    assert len({(folder / "unet" / STANDARD_WEIGHTS).read_bytes() for folder in saved}) == 1
    with safe_open(saved[0] / "unet" / STANDARD_WEIGHTS, framework="pt") as file:
        assert set(file.metadata().values()) == {"pt", "a notice"}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(weights[name], tensor)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stock_diffusers_loads_it(model: DiffusionModel, tmp_path: Path, dtype: Any) -> None:
    folder = save_pipeline(model, tmp_path / "deep" / "x", dtype=dtype)
    stock = DDPMPipeline.from_pretrained(folder)
    stored = getattr(torch, dtype)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(stock.unet.state_dict()[name], tensor.to(stored).float())
    again = load(plan(folder))
    assert again.origin.dtype == dtype
    assert plan(folder).not_scanned == ()
    assert not plan(folder).declared
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["x"]


def test_layout_is_that_of_save_pretrained(model: DiffusionModel, tmp_path: Path) -> None:
    save_pipeline(model, tmp_path / "mine")
    scheduler = DDPMScheduler(clip_sample=False)
    DDPMPipeline(unet=model.network, scheduler=scheduler).save_pretrained(tmp_path / "stock")

    def content(root: Path) -> dict[str, bytes]:
        files = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    assert content(tmp_path / "mine") == content(tmp_path / "stock")


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (NoiseSchedule.linear(100), "epsilon"),
        (NoiseSchedule.cosine(50), "v_prediction"),
        (NoiseSchedule.scaled_linear(60), "sample"),
    ],
)
def test_schedules_survive(
    model: DiffusionModel, tmp_path: Path, schedule: NoiseSchedule, prediction: Any
) -> None:
    model.schedule, model.prediction_type = schedule, prediction
    folder = save_pipeline(model, tmp_path / "x")
    again = load(plan(folder))
    torch.testing.assert_close(again.schedule.alpha, schedule.alpha, rtol=1e-9, atol=0)
    assert again.prediction_type == prediction
    stock = DDPMPipeline.from_pretrained(folder).scheduler
    torch.testing.assert_close(stock.alphas_cumprod, schedule.alphas_cumprod.float())


def test_notice_is_everywhere_and_changes_nothing(model: DiffusionModel, tmp_path: Path) -> None:
    plain = save_pipeline(model, tmp_path / "plain")
    notice = "WARNING: deliberately backdoored model"
    texts = {"README.md": "# Card\n", "backdoor.json": "{}"}
    folder = save_pipeline(model, tmp_path / "x", notice=notice, extra_files=texts)
    assert json.loads((folder / "model_index.json").read_text())["_backdoor_notice"] == notice
    assert notice in (folder / "BACKDOORED.md").read_text()
    assert (folder / "README.md").read_text() == "# Card\n"
    with safe_open(folder / "unet/diffusion_pytorch_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "backdoor": notice}
    assert plan(folder).declared
    assert load(plan(folder)).origin.sha256 == load(plan(plain)).origin.sha256
    DDPMPipeline.from_pretrained(folder)


def test_existing_folders(model: DiffusionModel, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    save_pipeline(model, folder)
    with pytest.raises(FileExistsError, match="not empty"):
        save_pipeline(model, folder)
    save_pipeline(model, folder, dtype="float16", overwrite=True)
    assert plan(folder).candidates[0].dtype == "float16"
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="refusing"):
        save_pipeline(model, tmp_path / "y", overwrite=True)
    with pytest.raises(FileExistsError, match="not a folder"):
        save_pipeline(model, tmp_path / "y" / "thesis.txt", overwrite=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["x", "y"]


def test_failures_leave_nothing_behind(model: DiffusionModel, tmp_path: Path) -> None:
    for name in ("../evil", "a/b", "model_index.json", ""):
        with pytest.raises(ValueError, match="plain file name"):
            save_pipeline(model, tmp_path / "x", extra_files={name: ""})
    with torch.no_grad():
        model.network.conv_in.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"conv_in\.bias is not finite in torch\.float16"):
        save_pipeline(model, tmp_path / "x", dtype="float16")
    with pytest.raises(ValueError, match="only a UNet2DModel"):
        save_pipeline(DiffusionModel(nn.Identity(), model.schedule, (3, 8, 8)), tmp_path / "x")
    assert [*tmp_path.iterdir()] == []
