"""Presets: values in the file of a benchmark, and what the shipped ones come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdrift.bench import zoo
from backdrift.bench.estimate import estimate
from backdrift.bench.recipes import Recipe
from backdrift.bench.tasks import PRESETS, bench_cells, bench_suites, load_bench, presets
from backdrift.bench.zoo import load_suite, model_cells
from backdrift.io import networks

SHIPPED = [(name, preset) for name in bench_suites() for preset in presets(name)]
ZOO = """
description = "one model"
[models.a]
steps = 2
[models.b]
base = "org/name@main"
shape = [3, 32, 32]
network = "ddpm-32"
"""
BENCH = """
description = "a benchmark"
zoo = "zoo.toml"
threads = 2
[tasks.one]
kind = "detect"
method = "purediffusion"
[tasks.two]
kind = "detect"
method = "backdrift"
models = ["a"]
[presets.gpu]
device = "cuda"
tasks.one = { options = { budget = "deep" }, models = ["b"] }
"""


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    (tmp_path / "zoo.toml").write_text(ZOO)
    (tmp_path / "bench.toml").write_text(BENCH)
    return tmp_path / "bench.toml"


def test_a_preset_replaces_what_it_names(bench: Path) -> None:
    assert presets(str(bench)) == ["cpu", "gpu"]
    plain, population = load_bench(str(bench))
    other, _ = load_bench(str(bench), "gpu")
    assert (plain.device, other.device, plain.threads, other.threads) == ("cpu", "cuda", 2, 2)
    assert other.tasks["one"].options == {"budget": "deep"}
    assert other.tasks["one"].models == ("b",)
    assert other.tasks["one"].method == "purediffusion"
    assert other.tasks["two"] == plain.tasks["two"]
    first, second = (bench_cells(suite, population, bench.parent / "out") for suite in (plain, other))
    assert [cell.address for cell in first[:2]] == [cell.address for cell in second[:2]]
    assert first[-1].name == second[-1].name
    assert first[-1].address != second[-1].address
    assert [cell.device for cell in second] == ["any", "any", "cuda", "cuda"]


def test_tasks_of_a_kind_share_what_they_do_not_say(bench: Path) -> None:
    before, _ = load_bench(str(bench))
    bench.write_text(
        BENCH.replace('method = "purediffusion"\n', "")
        + '[defaults.detect]\nmethod = "purediffusion"\noptions = { budget = "quick" }\n'
        + '[tasks.three]\nkind = "detect"\noptions = { budget = "deep" }\n'
    )
    suite, _ = load_bench(str(bench))
    assert suite.tasks["one"].method == before.tasks["one"].method == "purediffusion"
    assert suite.tasks["one"].options == suite.tasks["two"].options == {"budget": "quick"}
    assert (suite.tasks["two"].method, suite.tasks["two"].models) == ("backdrift", ("a",))
    assert suite.tasks["three"].options == {"budget": "deep"}
    assert load_bench(str(bench), "gpu")[0].tasks["one"].options == {"budget": "deep"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("[defaults]\ndetect = 3\n", "defaults are tables by kind of task"),
        ("[defaults.repair]\nimages = 3\n", "defaults for 'repair', and no task is of that kind"),
        ("[defaults.detect]\nimage = 3\n", "image"),
    ],
)
def test_defaults_that_cannot_be(bench: Path, words: str, told: str) -> None:
    bench.write_text(BENCH + words)
    with pytest.raises(ValueError, match=told):
        load_bench(str(bench))
    bench.write_text('description = "d"\nzoo = "zoo.toml"\ntasks = 3\n')
    with pytest.raises(ValueError, match="tasks"):
        load_bench(str(bench))


def test_only_models_that_a_task_needs_are_built(tmp_path: Path) -> None:
    suite, population = load_bench("anp")
    asked = {name for task in suite.tasks.values() for name in task.models}
    built = [cell.name for cell in bench_cells(suite, population, tmp_path) if cell.kind == "model"]
    assert set(built) == asked | {"base"} < set(population.models)
    assert built == [name for name in population.models if name in built]
    suite, population = load_bench("detection-dev")
    everything = [cell.name for cell in bench_cells(suite, population, tmp_path) if cell.kind == "model"]
    assert everything == list(population.models)


def test_a_preset_that_is_not_there(bench: Path) -> None:
    with pytest.raises(ValueError, match="has the presets cpu, gpu, not 'paper'"):
        load_bench(str(bench), "paper")
    bench.write_text(BENCH.replace("presets.gpu", "presets.laptop"))
    with pytest.raises(ValueError, match="'laptop' is no preset: smoke, gpu, paper"):
        load_bench(str(bench))


@pytest.mark.parametrize(("name", "preset"), SHIPPED)
def test_a_shipped_preset_can_be_planned(name: str, preset: str, tmp_path: Path) -> None:
    suite, population = load_bench(name, preset)
    assert suite.device == ("cuda" if preset in ("gpu", "paper") else "cpu")
    cells = bench_cells(suite, population, tmp_path)
    assert len({cell.path for cell in cells}) == len(cells)
    lines = estimate(suite, population, cells, pace=lambda recipe: 1e-6)
    assert [line.title for line in lines] == ["models", *suite.tasks]
    assert all(line.missing == line.cells > 0 for line in lines)
    assert all(line.evaluations > 0 for line in lines)
    if preset == "smoke":
        assert sum(line.evaluations for line in lines) < 1_000_000


def test_every_claim_can_be_run_in_seconds_and_on_a_gpu() -> None:
    assert {name for name, preset in SHIPPED if preset == "smoke"} >= {"attack", "detection-test"}
    assert {name for name, preset in SHIPPED if preset == "paper"} >= {"attack", "detection-test"}
    assert set(PRESETS) == {preset for _, preset in SHIPPED} - {"cpu"}


@pytest.mark.parametrize(
    ("size", "pixels", "parameters"), [("ddpm-32", 32, 35_746_307), ("ddpm-256", 256, 113_673_219)]
)
def test_the_published_networks_have_their_size(size: networks.Size, pixels: int, parameters: int) -> None:
    """The counts are those of google/ddpm-cifar10-32 and google/ddpm-ema-celebahq-256."""
    model = networks.new_model((3, pixels, pixels), seed=0, size=size)
    assert sum(p.numel() for p in model.network.parameters()) == parameters
    with pytest.raises(ValueError, match="network of shape"):
        networks.new_model((1, 16, 16), seed=0, size=size)


def test_a_base_of_the_hub_needs_no_model_before_it(bench: Path) -> None:
    suite = load_suite(str(bench.with_name("zoo.toml")))
    cell = model_cells(suite, bench.parent)["b"]
    assert cell.needs == ()
    assert suite.lineage("b") == [suite.models["b"]]
    (bench.with_name("zoo.toml")).write_text(ZOO.replace("org/name@main", "org/name"))
    with pytest.raises(ValueError, match="b needs base 'org/name'"):
        load_suite(str(bench.with_name("zoo.toml")))


def test_what_was_not_said_leaves_older_addresses(bench: Path) -> None:
    """A field that has its default is no part of what a result depends on."""
    assert Recipe(steps=2).text() == '{"steps":2}'
    assert zoo.VERSION == 1
