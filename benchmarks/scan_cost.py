"""What a scan costs beside its network: the time of the detector over that of the bare passes.

    python benchmarks/scan_cost.py [MODEL] [--budget quick]

One recorded run tells the batch size of every pass and whether a backward pass followed. Then the
detector and a bare replay of those passes on the same network take turns; the median ratio is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import backdrift
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build
from backdrift.io.load import load
from backdrift.io.plan import plan

Passes = list[tuple[int, bool]]


def main() -> None:
    """Prints the ratio of every round and their median."""
    shipped = Path(backdrift.__file__).parent / "models" / "backdoored"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=shipped)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = load(plan(options.model))
    detector = build("detection", "backdrift", {"budget": options.budget})
    passes = record(model, lambda: detector(model, seed=0))
    evaluations = sum(size * (3 if backward else 1) for size, backward in passes)
    print(f"{len(passes)} passes, {evaluations:,} evaluations, {torch.get_num_threads()} threads")
    ratios = []
    for number in range(options.rounds):
        whole = clock(lambda: detector(model, seed=0))
        bare = clock(lambda: replay(model, passes))
        ratios.append(whole / bare)
        print(
            f"round {number + 1}: scan {whole:.2f} s, bare {bare:.2f} s, ratio {ratios[-1]:.3f}", flush=True
        )
    print(f"median ratio {statistics.median(ratios):.3f}")


def record(model: DiffusionModel, call: Callable[[], Any]) -> Passes:
    """Batch size of every pass of the network, and whether it was recorded for a backward pass."""
    passes: Passes = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        passes.append((len(x), torch.is_grad_enabled() and x.requires_grad))

    handle = model.network.register_forward_pre_hook(note)
    call()
    handle.remove()
    return passes


def replay(model: DiffusionModel, passes: Passes) -> None:
    """The same passes on the bare network."""
    noise = torch.randn(max(size for size, _ in passes), *model.sample_shape)
    t = torch.full((len(noise),), len(model.schedule) - 1)
    with model.frozen():
        for size, backward in passes:
            x = noise[:size].clone().requires_grad_(backward)
            with torch.set_grad_enabled(backward):
                out = model.network(x, t[:size]).sample
                if backward:
                    out.square().mean().backward()


def clock(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
