"""Variance exploding checkpoints that stock diffusers saved, and ours in stock diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler

from backdrift.core.model import DiffusionModel
from backdrift.core.sampling import SNR
from backdrift.io.errors import CheckpointError, NotScannable
from backdrift.io.load import load, read_schedule
from backdrift.io.networks import new_model
from backdrift.io.plan import inspect, plan
from backdrift.io.save import save_pipeline
from backdrift.io.schedules import SchedulePlan, parse_schedule

VE = {"_class_name": "ScoreSdeVeScheduler"}
LEVELS = {"num_train_timesteps": 40, "sigma_min": 0.02, "sigma_max": 30.0}
NCSNPP = {
    "time_embedding_type": "fourier",
    "norm_num_groups": None,
    "mid_block_scale_factor": 2**0.5,
    "attention_head_dim": None,
    "block_out_channels": (32, 32),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
"""What is particular about the published networks (google/ncsnpp-*), small."""


@pytest.fixture
def exploding(unet: Any, tmp_path: Path) -> Path:
    network = unet(time_embedding_type="fourier")
    ScoreSdeVePipeline(network, ScoreSdeVeScheduler(**LEVELS, snr=0.2)).save_pretrained(tmp_path / "ve")
    return tmp_path / "ve"


def same_as_stock(folder: Path, levels: dict[str, Any]) -> DiffusionModel:
    stock, model = ScoreSdeVePipeline.from_pretrained(folder), load(plan(folder))
    t, count = torch.tensor([0, 5, 39]), levels["num_train_timesteps"]
    level = levels["sigma_min"] * (levels["sigma_max"] / levels["sigma_min"]) ** (t / (count - 1))
    z_t = torch.rand(3, *model.sample_shape) + level[:, None, None, None]
    x_t = (2 * z_t - 1) / (1 + 4 * level**2).sqrt()[:, None, None, None]
    with torch.no_grad():
        expected = -level[:, None, None, None] * stock.unet.eval()(z_t, level).sample
        torch.testing.assert_close(model(x_t, t), expected, rtol=1e-3, atol=1e-4)
    return model


def test_a_stock_pipeline_is_loaded_with_its_levels(exploding: Path) -> None:
    model = same_as_stock(exploding, LEVELS)
    assert model.prediction_type == "score"
    assert model.schedule.exploding
    planned = plan(exploding)
    assert planned.not_scanned == ()
    assert planned.format == "ScoreSdeVePipeline"
    assert planned.schedule_config.facts() == {
        "levels": "geometric",
        "sigma_min": 0.02,
        "sigma_max": 30.0,
        "timesteps": 40,
    }
    assert inspect(exploding).exit_code == 0


def test_the_published_network_is_covered(unet: Any, tmp_path: Path) -> None:
    ScoreSdeVePipeline(unet(**NCSNPP), ScoreSdeVeScheduler(**LEVELS)).save_pretrained(tmp_path / "ncsnpp")
    same_as_stock(tmp_path / "ncsnpp", LEVELS)


def test_frequencies_are_not_trained_and_are_stored(exploding: Path) -> None:
    network = load(plan(exploding)).network
    name = "time_proj.weight"
    assert name in network.state_dict()
    assert name not in dict(network.named_parameters())
    stock = ScoreSdeVePipeline.from_pretrained(exploding).unet.state_dict()
    assert torch.equal(network.state_dict()[name], stock[name])


def test_what_we_save_is_what_stock_saves(tmp_path: Path) -> None:
    model = new_model((1, 8, 8), seed=3, width=8, exploding=True)
    ours, stock = save_pipeline(model, tmp_path / "ours"), tmp_path / "stock"
    scheduler = ScoreSdeVeScheduler(1000, snr=SNR, sigma_min=0.01, sigma_max=7.2)
    ScoreSdeVePipeline(model.network, scheduler).save_pretrained(stock)
    files = sorted(path.relative_to(stock) for path in stock.rglob("*.*"))
    assert len(files) == 4
    assert files == sorted(path.relative_to(ours) for path in ours.rglob("*.*"))
    for name in files:
        assert (ours / name).read_bytes() == (stock / name).read_bytes()
    again = load(plan(ours))
    torch.testing.assert_close(again.schedule.levels, model.schedule.levels, rtol=1e-12, atol=0)
    assert same_as_stock(ours, {"num_train_timesteps": 1000, "sigma_min": 0.01, "sigma_max": 7.2})


@pytest.mark.parametrize(("shape", "highest"), [((3, 32, 32), 50.0), ((1, 16, 16), 14.4)])
def test_levels_go_up_with_the_number_of_pixels(shape: tuple[int, int, int], highest: float) -> None:
    levels = new_model(shape, seed=0, width=8, exploding=True).schedule.levels
    assert [float(levels[0]), float(levels[-1])] == pytest.approx([0.01, highest])


def test_a_bare_network_needs_its_scheduler(exploding: Path) -> None:
    bare = exploding / "unet"
    with pytest.raises(NotScannable, match=r"needs its scheduler_config\.json"):
        plan(bare)
    (bare / "scheduler_config.json").write_bytes(
        (exploding / "scheduler/scheduler_config.json").read_bytes()
    )
    assert plan(bare).format == "UNet2DModel"
    same_as_stock_levels = load(plan(bare)).schedule.levels
    assert float(same_as_stock_levels[-1]) == pytest.approx(30)


def test_defaults_are_those_of_diffusers() -> None:
    stock = ScoreSdeVeScheduler()
    found = parse_schedule(VE, "x")
    assert found == SchedulePlan("exploding", 0, 0, 2000, None, "score", (0.01, 1348.0))
    levels = read_schedule(found).levels
    torch.testing.assert_close(levels, stock.discrete_sigmas.double(), rtol=1e-5, atol=0)


def test_sampler_settings_are_ignored() -> None:
    noise = {"snr": [], "correct_steps": 10**9, "sampling_eps": None, "anything": "else"}
    assert parse_schedule({**VE, **noise}, "x") == parse_schedule(VE, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"num_train_timesteps": 10**8},
        {"num_train_timesteps": 1},
        {"num_train_timesteps": True},
        {"sigma_min": 0},
        {"sigma_min": 1e-300},
        {"sigma_min": float("nan")},
        {"sigma_max": 1e300},
        {"sigma_max": float("inf")},
        {"sigma_max": "50"},
        {"sigma_max": None},
        {"sigma_max": [50]},
        {"sigma_min": 3, "sigma_max": 3},
        {"sigma_min": 3, "sigma_max": 0.5},
    ],
)
def test_levels_out_of_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_schedule({**VE, **change}, "x")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_another_scheduler_than_the_index_names(exploding: Path, edit: Any) -> None:
    edit(exploding / "scheduler/scheduler_config.json", _class_name="DDPMScheduler")
    with pytest.raises(CheckpointError, match="is for 'DDPMScheduler', not 'ScoreSdeVeScheduler'"):
        plan(exploding)


@pytest.mark.parametrize("kind", ["learned", "fourier"])
def test_embeddings_that_do_not_go_with_the_schedule(
    pipeline: Path, exploding: Path, edit: Any, kind: str
) -> None:
    """Fourier features of timestep 0 are infinite, a table of noise levels has no rows between them."""
    folder = pipeline if kind == "fourier" else exploding
    edit(folder / "unet/config.json", time_embedding_type=kind, num_train_timesteps=100)
    with pytest.raises(NotScannable, match=f"{kind} time embeddings") as caught:
        plan(folder)
    assert caught.value.exit_code == 3


def test_the_pipeline_and_its_scheduler_go_together(pipeline: Path, exploding: Path, edit: Any) -> None:
    edit(pipeline / "model_index.json", scheduler=["diffusers", "ScoreSdeVeScheduler"])
    edit(exploding / "model_index.json", _class_name="KarrasVePipeline")
    for folder, line in ((pipeline, "a DDPMPipeline with a ScoreSdeVeScheduler"), (exploding, "'KarrasVe")):
        with pytest.raises(NotScannable, match=line):
            plan(folder)
