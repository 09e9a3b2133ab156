"""Accumulation, averages, precision, the log, and several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from backdrift.bench.recipes import clean_batch
from backdrift.core.model import DiffusionModel
from backdrift.data import load_images
from backdrift.io.networks import new_model
from backdrift.training import Batch, TrainingConfig, train
from backdrift.training.config import draw
from tiny import SHAPE, tiny_model

ROWS = 16
CONFIG = TrainingConfig(steps=6, batch_size=8, learning_rate=1e-2, seed=3, checkpoint_every=2)


def pairs(model: DiffusionModel) -> Batch:
    images = torch.linspace(-1, 1, ROWS)[:, None, None, None].expand(ROWS, *SHAPE)

    def batch(index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return model.schedule.add_noise(images[index], noise, t), noise

    return batch


def trained(config: TrainingConfig = CONFIG, **options: object) -> Tensor:
    model = tiny_model()
    train(model, ROWS, pairs(model), config, **options)
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return trained()


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_is_one_step_of_the_whole_batch(plain: Tensor, parts: int) -> None:
    split = trained(replace(CONFIG, accumulate=parts))
    start = torch.cat([p.detach().flatten() for p in tiny_model().network.parameters()])
    assert float((split - plain).abs().max()) < 0.02 * float((plain - start).abs().max())


def path_of(config: TrainingConfig, **options: Any) -> tuple[list[Tensor], Tensor]:
    """What is watched after the start and after every step, and how the run ends."""
    path = [torch.cat([p.detach().flatten() for p in tiny_model().network.parameters()])]

    def look(model: DiffusionModel, step: int) -> None:
        assert not model.network.training
        assert step == len(path)
        path.append(torch.cat([p.detach().flatten() for p in model.network.parameters()]))

    return path, trained(config, watch=look, **options)


def test_the_average_is_that_of_the_weights_of_every_step(tmp_path: Path) -> None:
    """The path of the plain run, averaged by hand; the averaged run shows its averages on the way."""
    path, _ = path_of(replace(CONFIG, checkpoint_every=1), state=tmp_path / "plain")
    shown, kept = path_of(replace(CONFIG, checkpoint_every=1, ema=0.5), state=tmp_path / "averaged")
    assert len(path) == len(shown) == 7
    wanted = path[0]
    for n, now in enumerate(path[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * now
        torch.testing.assert_close(shown[n], wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(kept, shown[-1])
    assert not torch.allclose(kept, path[-1], atol=1e-4)


def test_other_steps_can_be_watched_and_nothing_changes(plain: Tensor) -> None:
    seen = []
    config = replace(CONFIG, checkpoint_every=0)
    kept = trained(config, watch=lambda model, step: seen.append(step), watch_at=(2, 5))
    assert seen == [2, 5]
    assert torch.equal(kept, trained(config))


def test_a_killed_run_has_the_same_average(tmp_path: Path) -> None:
    config = replace(CONFIG, ema=0.9)
    whole = trained(config)

    def die(model: DiffusionModel, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(config, state=tmp_path, watch=die)
    assert torch.equal(trained(config, state=tmp_path), whole)


def test_half_precision_ends_near(plain: Tensor) -> None:
    half = trained(replace(CONFIG, mixed_precision="bf16"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, plain)
    start = torch.cat([p.detach().flatten() for p in tiny_model().network.parameters()])
    assert torch.nn.functional.cosine_similarity(half - start, plain - start, dim=0) > 0.9


def test_offset_noise_is_one_constant_for_a_channel_on_top_of_the_same_noise() -> None:
    config = replace(CONFIG, batch_size=2000)
    shape = (3, 4, 4)
    plain, offset = (draw(replace(config, offset_noise=o), 5, ROWS, 1000, shape) for o in (0.0, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(plain[:2], offset[:2], strict=True))
    added = offset[2] - plain[2]
    assert float(added.std(dim=(2, 3)).max()) < 1e-6
    constants = added.mean(dim=(2, 3))
    assert float(constants.std()) == pytest.approx(0.5, rel=0.05)
    assert float(torch.corrcoef(constants.T).fill_diagonal_(0).abs().max()) < 0.1


@pytest.mark.slow
def test_one_group_and_offset_noise_teach_a_network_in_colour_what_to_answer_to_a_mean() -> None:
    """At t = 950 nearly all of it is noise: the mean of a channel should come back whole."""
    shape = (3, 16, 16)
    images = load_images("shapes", shape)
    x = torch.randn(256, *shape, generator=torch.Generator().manual_seed(0))
    given, slopes = x.mean((2, 3)).flatten(), []
    for groups, offset in ((8, 0.0), (1, 0.0), (1, 0.2)):
        model = new_model(shape, seed=0, width=8, groups=groups)
        config = replace(CONFIG, steps=120, batch_size=16, learning_rate=4e-3, offset_noise=offset)
        train(model, len(images), clean_batch(model, images), config)
        with torch.no_grad():
            answer = model(x, 950).mean((2, 3)).flatten()
        slopes.append(float((given * answer).sum() / given.square().sum()))
    assert slopes[0] + 0.1 < slopes[1] < slopes[2] - 0.05 < 1


def test_the_log_has_every_step_once_after_a_kill(tmp_path: Path) -> None:
    config, log = replace(CONFIG, steps=35, checkpoint_every=5), tmp_path / "run.jsonl"

    def die(model: DiffusionModel, step: int) -> None:
        if step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(config, state=tmp_path / "state", log=log, watch=die)
    trained(config, state=tmp_path / "state", log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 35]
    assert all(line["loss"] > 0 and line["images_per_second"] > 0 for line in lines)
    assert lines[-1]["learning_rate"] < lines[0]["learning_rate"]


def test_the_time_of_a_resumed_run_is_that_of_all_its_steps(tmp_path: Path) -> None:
    def slow(model: DiffusionModel, step: int) -> None:
        time.sleep(1)
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(state=tmp_path, watch=slow)
    model = tiny_model()
    cost = train(model, ROWS, pairs(model), CONFIG, state=tmp_path, log=tmp_path / "log.jsonl")
    assert cost["seconds"] > 1
    assert json.loads((tmp_path / "log.jsonl").read_text())["seconds"] > 1


@pytest.mark.parametrize(
    ("change", "word"),
    [({"accumulate": 3}, "equal parts"), ({"accumulate": 0}, "equal parts"), ({"ema": 1.0}, "decay")],
)
def test_what_makes_no_sense_is_refused(change: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(CONFIG, **change)


def test_a_tracker_needs_a_log() -> None:
    with pytest.raises(ValueError, match="name a log"):
        trained(log_with="tensorboard")


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """``accelerate launch`` on two CPU processes, against one process."""
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    train_command = ["train", "--size", "8", "--width", "8", "--groups", "2", "--steps", "6", "--rows", "8"]
    several = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command, name in (
        ([sys.executable, "-m", "backdrift"], "one"),
        ([*launch, *several, "--dynamo_backend", "no", "-m", "backdrift"], "two"),
    ):
        done = subprocess.run(
            [*command, *train_command, "-o", str(tmp_path / name), "-q"],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    file = "unet/diffusion_pytorch_model.safetensors"
    one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)
