"""What the training loop costs beside a bare one: the ratio of their seconds, interleaved.

    python benchmarks/train_cost.py

The bare loop does the same network passes, draws, clipping and Adam steps on the same rows and knows
nothing of logs, resuming, schedules of the rate or processes. The target is a throughput within 5%.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from backdrift.bench.recipes import clean_batch
from backdrift.core.model import DiffusionModel
from backdrift.data import load_images
from backdrift.io.networks import new_model
from backdrift.training import TrainingConfig, draw, train

SHAPE = (1, 16, 16)


def main() -> None:
    """Prints the ratio of every round and their median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    config = TrainingConfig(steps=options.steps, checkpoint_every=0)
    images = load_images("digits", SHAPE)
    ratios = []
    for number in range(options.rounds + 1):
        ours, bare = new_model(SHAPE, seed=0), new_model(SHAPE, seed=0)
        begun = time.perf_counter()
        train(ours, len(images), clean_batch(ours, images), config)
        middle = time.perf_counter()
        plain(bare, images, config)
        end = time.perf_counter()
        if number:  # the first round warms up
            ratios.append((middle - begun) / (end - middle))
            spent = f"ours {middle - begun:.2f} s, bare {end - middle:.2f} s"
            print(f"round {number}: {spent}, ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


def plain(model: DiffusionModel, images: torch.Tensor, config: TrainingConfig) -> None:
    """The loop of a tutorial."""
    network, schedule = model.network.train().requires_grad_(True), model.schedule
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    for step in range(config.steps):
        index, t, noise = draw(config, step, len(images), len(schedule), model.sample_shape)
        loss = ((noise - network(schedule.add_noise(images[index], noise, t), t).sample) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
