from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from backdrift.bench import zoo
from backdrift.bench.recipes import Recipe
from backdrift.core import registry
from backdrift.data import DATASETS
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
        assert recipe.data in DATASETS
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
    assert all(cost is not None and cost["steps"] == 2 for cost in costs.values())
    assert {text.split(",")[0] for text in calls} == {"clean", "tuned"}
    made = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert made == ["clean", "clean.jsonl", "tuned", "tuned.jsonl"]
    tuned = plan(tmp_path / "a" / "tuned")
    assert (tuned.declared, tuned.sample_shape, tuned.candidates[0].dtype) == (False, (1, 8, 8), "float16")

    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert zoo.build_suite(suite, tmp_path / "a") == {"clean": None, "tuned": None}
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


def test_a_recipe_is_data() -> None:
    recipe = Recipe(steps=3, options={"poison_rate": 0.5})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
