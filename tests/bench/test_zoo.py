from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from backdrift.bench import zoo
from backdrift.bench.recipes import Recipe
from backdrift.bench.tasks import BenchSuite, Opened, Task, run_bench
from backdrift.core import registry
from backdrift.data import DATASETS
from backdrift.io.load import load
from backdrift.io.plan import plan

SUITE = """
description = "two models of two steps"

[models.clean]
shape = [1, 8, 8]
width = 8
steps = 2
batch_size = 4
seed = 1

[models.tuned]
base = "clean"
steps = 2
batch_size = 4
dtype = "float16"
"""
WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "UTILITY", (32, 3))


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", zoo.suites())
def test_every_shipped_suite_names_only_what_there_is(name: str) -> None:
    suite = zoo.load_suite(name)
    assert suite.description
    assert suite.models
    for recipe in suite.models.values():
        assert recipe.data.partition(":")[0] in DATASETS
        if recipe.attack is None:
            assert recipe.trigger is recipe.target is None
            continue
        from backdrift.attacks.patterns import TARGETS, TRIGGERS

        attack = registry.build("attacks", recipe.attack, {**recipe.options, "seed": recipe.seed})
        assert recipe.trigger in (["learned"] if attack.learns_trigger else TRIGGERS)
        assert recipe.target in TARGETS


@pytest.mark.parametrize("name", zoo.suites())
def test_no_two_models_of_a_suite_are_alike(name: str) -> None:
    recipes = [recipe.model_dump_json() for recipe in zoo.load_suite(name).models.values()]
    assert len(set(recipes)) == len(recipes)


def test_demo_is_shipped() -> None:
    assert "demo" in zoo.suites()
    assert list(zoo.load_suite("demo").models) == ["clean", "backdoored"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("[models.a]\nstep = 5", "step"),
        ("[models.a]\nsteps = 0", "steps"),
        ("[models.a]\nlearning_rate = -1", "learning_rate"),
        ("[models.a]\ndtype = 'int8'", "dtype"),
        ("budget = 'deep'\n[models.a]", "budget"),
        ("[models.a]\nbase = 'b'\n[models.b]", "a needs base 'b'"),
        ("[models.a]\nbase = 'a'", "a needs base 'a'"),
        ("[models.a", "suite"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, line: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        zoo.load_suite(written(tmp_path, f'description = ""\n{line}\n'))


def test_an_unknown_suite_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"no suite 'no-such'.*demo"):
        zoo.load_suite("no-such")


def test_a_suite_is_built_once_and_the_same_each_time(tmp_path: Path) -> None:
    suite = zoo.load_suite(written(tmp_path, SUITE))
    calls: list[str] = []
    costs = zoo.build_suite(suite, tmp_path / "a", progress=lambda done, total, text: calls.append(text))
    assert list(costs) == ["clean", "tuned"]
    for name, result in costs.items():
        assert result.status == "done", result.error
        assert result.value["weights_sha256"] == load(plan(tmp_path / "a" / name)).origin.sha256
        assert result.value["utility"]["FD(random-conv)"] > 0
        assert result.value["measured"] is None
        assert result.evaluations > 3 * 2 * 4
        assert result.resolved["steps"] == 2
    assert {text.split(",")[0] for text in calls} == {"clean", "tuned"}
    made = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert made == [".locks", "clean", "clean.json", "clean.jsonl", "tuned", "tuned.json", "tuned.jsonl"]
    tuned = plan(tmp_path / "a" / "tuned")
    assert (tuned.declared, tuned.sample_shape, tuned.candidates[0].dtype) == (False, (1, 8, 8), "float16")

    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert zoo.build_suite(suite, tmp_path / "a") == costs
    assert before == {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "a").rglob("*") if p.is_file()
    }

    only = zoo.Suite(description="", models={"clean": suite.models["clean"]})
    zoo.build_suite(only, tmp_path / "b")
    left, right = ((tmp_path / top / "clean" / WEIGHTS).read_bytes() for top in "ab")
    assert left == right
    start, end = (load_file(tmp_path / "a" / name / WEIGHTS) for name in ("clean", "tuned"))
    moved = [float((start[k] - end[k].float()).abs().max()) for k in start]
    assert 1e-4 < max(moved) < 0.01  # two steps from its base, and not from scratch


def test_a_folder_of_another_origin_is_left_alone(tmp_path: Path) -> None:
    suite = zoo.load_suite(written(tmp_path, SUITE))
    small = suite.model_copy(update={"models": {"clean": suite.models["clean"]}})
    (tmp_path / "a" / "clean").mkdir(parents=True)
    with pytest.raises(ValueError, match="was not made by this command"):
        zoo.build_suite(suite, tmp_path / "a")
    tasks = {"scan": Task(kind="detect", method="backdrift")}
    bench = Opened(suite=BenchSuite(description="", zoo="", tasks=tasks), zoo=suite, models="../a")
    with pytest.raises(ValueError, match="was not made by this command"):
        run_bench(bench, tmp_path / "results")
    assert {p.name for p in tmp_path.rglob("*")} == {"suite.toml", "a", "clean"}
    zoo.build_suite(small, tmp_path / "b")
    other = zoo.load_suite(written(tmp_path, SUITE.replace("steps = 2", "steps = 3", 1)))
    with pytest.raises(ValueError, match="other settings"):
        zoo.build_suite(other, tmp_path / "b")


def test_killed_before_its_result_a_model_is_built_again(tmp_path: Path) -> None:
    suite = zoo.load_suite(written(tmp_path, SUITE))
    first = zoo.build_suite(suite, tmp_path)
    (tmp_path / "tuned.json").unlink()
    again = zoo.build_suite(suite, tmp_path)
    assert again["clean"] == first["clean"]
    assert again["tuned"].value["weights_sha256"] == first["tuned"].value["weights_sha256"]


GROUPS = """
description = ""
[models.base]
seed = 1
[groups.patch]
defaults = { base = "base", attack = "baddiffusion", options = { mode = "add" }, target = "hat" }
[groups.patch.vary]
seed = [2, 3]
"options.poison_rate" = [0.1, 0.5]
[groups.patch.models.white]
trigger = "white-patch"
options = { sampler_family = "ode" }
[groups.large.models.last]
base = "base"
steps = 7
"""


def test_groups_are_models_with_much_in_common(tmp_path: Path) -> None:
    suite = zoo.load_suite(written(tmp_path, GROUPS))
    names = ["white-2-0.1", "white-2-0.5", "white-3-0.1", "white-3-0.5"]
    assert list(suite.models) == ["base", *names, "last"]
    assert suite.kinds == {**dict.fromkeys(names, "patch"), "last": "large"}
    one = suite.models["white-3-0.1"]
    assert (one.seed, one.trigger, one.target, one.base) == (3, "white-patch", "hat", "base")
    assert one.options == {"mode": "add", "sampler_family": "ode", "poison_rate": 0.1}
    assert suite.models["last"] == Recipe(base="base", steps=7)
    assert suite.lineage("last") == [suite.models["base"], suite.models["last"]]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("steps = 7", "stepps = 7"), "stepps"),
        (("[groups.large.models.last]", "[groups.large.models.base]"), "two models are called base"),
        (("[groups.large.models.last]", '[groups.large.models."../x"]'), "no name for a folder"),
        (("[groups.patch.vary]", "[groups.patch.varied]"), "varied"),
    ],
)
def test_a_mistake_in_a_group_is_named(tmp_path: Path, change: tuple[str, str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        zoo.load_suite(written(tmp_path, GROUPS.replace(*change)))


def test_a_recipe_is_data() -> None:
    recipe = Recipe(steps=3, options={"poison_rate": 0.5})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
