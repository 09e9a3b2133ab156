from __future__ import annotations

import inspect
import json
from typing import Any

import diffusers
import pytest

from backdrift.io.configs import (
    UNET_KEYS,
    parse_network,
)
from backdrift.io.errors import CheckpointError, NotScannable
from backdrift.io.schedules import VP_SCHEDULERS, SchedulePlan, parse_schedule

UNET = {"_class_name": "UNet2DModel", "sample_size": 8}
DDPM = {"_class_name": "DDPMScheduler"}


def test_keys_are_those_of_diffusers() -> None:
    signature = inspect.signature(diffusers.UNet2DModel.__init__)
    assert {*signature.parameters} - {"self"} == UNET_KEYS


@pytest.mark.parametrize("name", VP_SCHEDULERS)
def test_scheduler_defaults_are_those_of_diffusers(name: str) -> None:
    defaults = inspect.signature(getattr(diffusers, name).__init__).parameters
    found = parse_schedule({"_class_name": name}, "x")
    assert (found.beta_start, found.beta_end) == tuple(
        defaults[key].default for key in ("beta_start", "beta_end")
    )
    assert (found.kind, found.timesteps, found.prediction_type) == tuple(
        defaults[key].default for key in ("beta_schedule", "num_train_timesteps", "prediction_type")
    )


def test_stock_config_is_accepted(unet: Any) -> None:
    config = json.loads(unet().to_json_string())
    extra = {"_diffusers_version": "0.1", "_name_or_path": "/x", "_backdoor_notice": "careful"}
    known, shape = parse_network({**config, **extra, "_class_name": "UNet2DModel"}, "x")
    assert shape == (3, 8, 8)
    assert known.keys() == UNET_KEYS


def test_sample_size_may_be_a_pair() -> None:
    assert parse_network({**UNET, "sample_size": [16, 16]}, "x")[1] == (3, 16, 16)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "AutoencoderKL"},
        {"_class_name": ["mine", "UNet2DModel"]},
        {"_class_name": None},
        {"auto_map": {}},
        {"quantization_config": {}},
        {"sample_size": 2000},
        {"sample_size": [8, 16]},
        {"sample_size": True},
        {"in_channels": 5},
        {"in_channels": 1},
        {"out_channels": 6},
        {"block_out_channels": [32768]},
        {"block_out_channels": [8] * 17},
        {"block_out_channels": "88"},
        {"block_out_channels": []},
        {"layers_per_block": 20000},
        {"layers_per_block": 1.5},
        {"layers_per_block": -1},
        {"downsample_padding": 10**9},
        {"norm_num_groups": 0},
        {"norm_eps": -1},
        {"dropout": "0"},
        {"act_fn": "os.system"},
        {"act_fn": ["silu"]},
        {"down_block_types": [1]},
        {"freq_shift": 10**6},
        {"num_train_timesteps": 10**8},
    ],
)
def test_bad_network_configs(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_network({**UNET, **change}, "unet/config.json")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("unet/config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"sample_size": None},
        {"class_embed_type": "timestep"},
        {"time_embedding_type": "sinusoidal"},
        {"mid_block_type": "UNetMidBlock2DCrossAttn"},
        {"down_block_types": ["KDownBlock2D"]},
        {"up_block_types": ["CrossAttnUpBlock2D"]},
    ],
)
def test_unsupported_networks(change: dict[str, Any]) -> None:
    with pytest.raises(NotScannable):
        parse_network({**UNET, **change}, "x")


def test_sampler_settings_are_ignored() -> None:
    noise = {"clip_sample": [], "timestep_spacing": 3, "thresholding": {}, "variance_type": None}
    assert parse_schedule({**DDPM, **noise, "anything": "else"}, "x") == SchedulePlan()


def test_schedule_values() -> None:
    config = {**DDPM, "beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.5}
    found = parse_schedule({**config, "prediction_type": "sample", "num_train_timesteps": 7}, "x")
    assert found == SchedulePlan("scaled_linear", 0.001, 0.5, 7, None, "sample")
    trained = parse_schedule({**DDPM, "num_train_timesteps": 2, "trained_betas": [0.1, 0.2]}, "x")
    assert trained.kind == "trained_betas"
    assert trained.trained_betas == (0.1, 0.2)


def test_the_class_of_the_pipeline_gives_the_defaults() -> None:
    found = parse_schedule(DDPM, "x", "HeunDiscreteScheduler")
    assert (found.beta_start, found.beta_end) == (0.00085, 0.012)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"_class_name": "UNet2DModel"}, 2),
        ({"_class_name": ["a", "DDPMScheduler"]}, 2),
        ({"num_train_timesteps": 10**8}, 2),
        ({"num_train_timesteps": 1}, 2),
        ({"num_train_timesteps": "1000"}, 2),
        ({"beta_start": 0}, 2),
        ({"beta_end": 1}, 2),
        ({"beta_end": "0.02"}, 2),
        ({"beta_end": None}, 2),
        ({"trained_betas": [0.1]}, 2),
        ({"trained_betas": "0.1"}, 2),
        ({"num_train_timesteps": 2, "trained_betas": [0.1, 2]}, 2),
        ({"_class_name": "KarrasVeScheduler"}, 3),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 3),
        ({"beta_schedule": "sigmoid"}, 3),
        ({"beta_schedule": {}}, 3),
        ({"prediction_type": "flow_prediction"}, 3),
        ({"prediction_type": []}, 3),
        ({"rescale_betas_zero_snr": True}, 3),
        ({"rescale_betas_zero_snr": 1}, 3),
    ],
)
def test_bad_schedules(change: dict[str, Any], code: int) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_schedule({**DDPM, **change}, "x")
    assert caught.value.exit_code == code
