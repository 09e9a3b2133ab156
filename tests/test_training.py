from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backdrift.core.model import DiffusionModel
from backdrift.training import Batch, TrainingConfig, draw, learning_rate_at, train
from tiny import SHAPE, tiny_model

ROWS = 16
CONFIG = TrainingConfig(steps=7, batch_size=4, learning_rate=1e-3, seed=3, checkpoint_every=2)


class Killed(Exception):
    pass


def images() -> Tensor:
    return torch.linspace(-1, 1, ROWS)[:, None, None, None].expand(ROWS, *SHAPE)


def pairs_of(model: DiffusionModel, *, die_at: int | None = None) -> Batch:
    """Clean pairs; raises instead of step ``die_at``."""
    calls = 0

    def pairs(index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        if calls == die_at:
            raise Killed
        calls += 1
        return model.schedule.add_noise(images()[index], noise, t), noise

    return pairs


def run(model: DiffusionModel, config: TrainingConfig = CONFIG, **options: object) -> dict[str, object]:
    die_at = options.pop("die_at", None)
    return train(model, ROWS, pairs_of(model, die_at=die_at), config, **options)


def weights(model: DiffusionModel) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.network.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Tensor]:
    model = tiny_model()
    run(model)
    return weights(model)


@pytest.mark.parametrize("die_at", [3, 4, 6])
def test_a_killed_run_ends_at_the_same_weights(
    uninterrupted: dict[str, Tensor], tmp_path: Path, die_at: int
) -> None:
    with pytest.raises(Killed):
        run(tiny_model(), state=tmp_path, die_at=die_at)
    seen: list[int] = []
    again = tiny_model(seed=99)  # whatever it starts from, the state counts
    run(again, state=tmp_path, progress=lambda done, total, text: seen.append(done))
    assert seen[0] == die_at // 2 * 2 + 1
    assert_same(weights(again), uninterrupted)


def test_the_state_changes_nothing(uninterrupted: dict[str, Tensor], tmp_path: Path) -> None:
    model = tiny_model()
    run(model, state=tmp_path / "new" / "folder")
    assert_same(weights(model), uninterrupted)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["state.safetensors"]


def test_a_state_cut_short_while_written_is_not_used(
    uninterrupted: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "state.tmp").write_bytes(b"half of a file")
    model = tiny_model()
    run(model, state=tmp_path)
    assert_same(weights(model), uninterrupted)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = TrainingConfig(steps=4, batch_size=4, checkpoint_every=2)
    model = tiny_model()
    run(model, config, state=tmp_path)
    before = weights(model)
    again = tiny_model(seed=99)
    cost = run(again, config, state=tmp_path, die_at=0)
    assert_same(weights(again), before)
    assert cost["loss"] == []
    assert cost["images_per_second"] == 0


def test_without_checkpoints_no_state_is_written(tmp_path: Path) -> None:
    run(tiny_model(), TrainingConfig(steps=2, batch_size=2, checkpoint_every=0), state=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"steps": 8}, {"learning_rate": 1e-4}, {"batch_size": 2}, {"run": "other"}]
)
def test_a_state_of_another_run_is_refused_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(Killed):
        run(tiny_model(), state=tmp_path, die_at=3)
    model = tiny_model()
    before = weights(model)
    with pytest.raises(ValueError, match="another configuration: remove it") as caught:
        run(model, TrainingConfig(**{**vars(CONFIG), **change}), state=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert_same(weights(model), before)


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_training import pairs_of, run, ROWS, CONFIG
from tiny import tiny_model
from backdrift.training import train
model = tiny_model()
inner, calls = pairs_of(model), []
def pairs(*arguments):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*arguments)
train(model, ROWS, pairs, CONFIG, state=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_sigkill_and_resume_in_another_process(uninterrupted: dict[str, Tensor], tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(Path(__file__).parent)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    again = tiny_model(seed=99)
    run(again, state=tmp_path)
    assert_same(weights(again), uninterrupted)


def test_learning_rate_warms_up_then_falls_to_nothing() -> None:
    config = TrainingConfig(steps=100, learning_rate=2.0, warm_up=0.1)
    rates = [learning_rate_at(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)  # half way down
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 2e-3
    whole = 2.0 * (1 + math.cos(math.pi * 25 / 90)) / 2
    assert rates[35] == pytest.approx(whole)


@pytest.mark.parametrize("steps", [1, 2])
def test_learning_rate_of_the_shortest_runs(steps: int) -> None:
    rates = [learning_rate_at(TrainingConfig(steps=steps, learning_rate=1.0), k) for k in range(steps)]
    assert rates == [1.0] * steps


def test_it_is_the_plain_loop() -> None:
    """Adam, gradient norm clipped to 1, mean squared error: written out with nothing of ours."""
    config = TrainingConfig(steps=5, batch_size=4, learning_rate=1e-2, seed=1, checkpoint_every=0)
    model = tiny_model()
    cost = run(model, config)
    other = tiny_model()
    network, losses = other.network.train(), []
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(5):
        index, t, noise = draw(config, step, ROWS, 100, SHAPE)
        alpha = other.schedule.alpha[t].float()[:, None, None, None]
        sigma = other.schedule.sigma[t].float()[:, None, None, None]
        predicted = network(alpha * images()[index] + sigma * noise, t).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate_at(config, step)
        optimizer.step()
    assert cost["loss"] == pytest.approx(losses, abs=1e-6)
    for name, tensor in model.network.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_the_draws_of_a_step_depend_on_seed_and_step_alone() -> None:
    first = draw(CONFIG, 5, ROWS, 100, SHAPE)
    torch.randn(3)
    again = draw(CONFIG, 5, ROWS, 100, SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], draw(CONFIG, 6, ROWS, 100, SHAPE)[2])
    index, t, noise = draw(TrainingConfig(batch_size=4000), 0, ROWS, 100, SHAPE)
    assert set(index.tolist()) == set(range(ROWS))
    assert set(t.tolist()) == set(range(100))
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = tiny_model()

    def pairs(index: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return noise, noise * float("inf")

    with pytest.raises(FloatingPointError, match="not finite at step 0: lower the learning rate"):
        train(model, ROWS, pairs, CONFIG, state=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_model_comes_back_frozen() -> None:
    model = tiny_model()
    run(model, TrainingConfig(steps=1, batch_size=2))
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
