"""Repairs, reinforced triggers and searches as cells, beside direct calls of the library."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backdrift.amplify import Amplify, Ball
from backdrift.bench import _planting, zoo
from backdrift.bench.report import render_bench
from backdrift.bench.runner import Result
from backdrift.bench.tables import evaluation_markdown, evaluation_table
from backdrift.bench.tasks import Opened, run_bench
from backdrift.core.injection import Injection
from backdrift.data import load_dataset
from backdrift.detection import purediffusion
from backdrift.evaluate import Plan
from backdrift.groundtruth import load_backdoor
from backdrift.io.evidence import load_candidates
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.mse import mse
from backdrift.metrics.specificity import specificity
from backdrift.repair._base import found_by
from backdrift.repair.anp import Anp
from backdrift.repair.clipping import Clipping
from kinds import SEARCH, population, suite

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Opened, Path]]:
    """A folder in which everything was run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "UTILITY", (32, 3))
        patch.setattr(_planting, "SAMPLES", 32)
        patch.setattr(_planting, "STEPS", 4)
        patch.setitem(purediffusion.STEPS, "quick", 1)
        opened = Opened(suite=suite(), zoo=population(), models="zoo")
        folder = tmp_path_factory.mktemp("bench") / "results"
        assert set(run_bench(opened, folder).values()) == {"done"}, [
            f"{cell.name}: {result.error}"
            for cell in opened.cells(folder)
            if (result := cell.result()) and result.error
        ]
        yield opened, folder


def result(done: tuple[Opened, Path], name: str) -> Result:
    opened, folder = done
    (cell,) = (cell for cell in opened.cells(folder) if cell.name == name)
    found = cell.result()
    assert found is not None
    return found


def numbers(found: Result) -> dict[str, float]:
    return {row["name"]: row["value"] for row in found.value["measures"]}


def test_the_cells_of_every_kind(done: tuple[Opened, Path]) -> None:
    opened, folder = done
    names = [cell.name for cell in opened.cells(folder) if cell.kind != "model"]
    assert names == [
        "scan, clean, seed 0",
        "scan, bad, seed 0",
        "clip, clean, seed 0",
        "clip, bad, seed 0",
        "unlearn, bad, seed 0",
        *(f"{title}, bad at step {step}, seed 0" for title in ("attack", "kept") for step in (0, 2, 4)),
        "both, clean, seed 0",
        "both, bad, seed 0",
        "anp, clean, seed 0",
        "anp, bad, seed 0",
    ]
    assert (folder / "cells" / "kept" / "bad@000002-0.json").is_file()


def test_the_cells_of_one_task_are_its_own_and_what_they_need(done: tuple[Opened, Path]) -> None:
    opened, folder = done
    names = [cell.name for cell in opened.cells(folder, ["unlearn"])]
    assert names == ["clean", "bad", "scan, bad, seed 0", "unlearn, bad, seed 0"]
    with pytest.raises(ValueError, match=r"no task is called 'unlearned'; there are scan, clip"):
        opened.cells(folder, ["scan", "unlearned"])


def untimed(value: Any) -> Any:
    """Without the seconds that something took."""
    if isinstance(value, dict):
        return {key: untimed(part) for key, part in value.items() if key != "seconds"}
    return value


def test_results_go_on_where_the_models_are_not(
    done: tuple[Opened, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fresh clone: JSON alone. What a missing cell needs is made again, and comes out the same."""
    monkeypatch.setattr(zoo, "UTILITY", (32, 3))
    monkeypatch.setattr(_planting, "SAMPLES", 32)
    monkeypatch.setattr(_planting, "STEPS", 4)
    monkeypatch.setitem(purediffusion.STEPS, "quick", 1)
    opened, folder = done[0], tmp_path / "results"
    for path in (path for path in done[1].rglob("*.json") if "evidence" not in path.parts):
        if path.with_suffix("").is_dir() or "zoo" not in path.parts:
            (folder / path.relative_to(done[1])).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(done[1]))
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    assert set(run_bench(opened, folder).values()) == {"done"}
    assert not (folder / "zoo" / "clean").exists()
    gone = folder / "cells" / "clip" / "bad-0.json"
    gone.unlink()
    assert set(run_bench(opened, folder).values()) == {"done"}
    changed = {path for path in before if path.read_bytes() != before[path]}
    scan = folder / "cells" / "scan" / "bad-0.json"
    assert changed == {gone, scan, folder / "zoo" / "bad.json", folder / "zoo" / "clean.json"}
    for path in changed:
        old, new = (Result.model_validate_json(text) for text in (before[path], path.read_bytes()))
        assert (new.address, new.evaluations) == (old.address, old.evaluations)
        assert untimed(new.value) == untimed(old.value)


def test_a_step_is_the_model_of_that_step(done: tuple[Opened, Path]) -> None:
    models = done[1] / "zoo"
    places = {0: models / "clean", 2: models / "bad.steps" / "000002", 4: models / "bad"}
    weights = {step: load(plan(place)).origin.sha256 for step, place in places.items()}
    assert len(set(weights.values())) == 3
    for step, sha256 in weights.items():
        assert result(done, f"kept, bad at step {step}, seed 0").value["model"] == sha256
        assert result(done, f"attack, bad at step {step}, seed 0").value["weights_sha256"] == sha256


def test_a_twin_is_the_base_of_the_ratio(done: tuple[Opened, Path]) -> None:
    """A model beside itself has the ratio 1; the end is the same model under two tasks."""
    own, end = (result(done, f"both, {name}, seed 0") for name in ("clean", "bad"))
    assert numbers(own)["FD(random-conv) ratio"] == 1
    assert numbers(end)["FD(random-conv) ratio"] != 1
    assert numbers(end) == numbers(result(done, "kept, bad at step 4, seed 0"))
    assert own.value["model"] == end.value["clean_twin"]


def test_a_reinforced_trigger_is_that_of_the_library(done: tuple[Opened, Path]) -> None:
    models, found = done[1] / "zoo", result(done, "attack, bad at step 2, seed 0")
    model, planted = load(plan(models / "bad.steps" / "000002")), load_backdoor(models / "bad")
    own = Amplify(steps=2, batch=4)(model, planted, Ball("linf", 0.1), seed=0)
    rows = own.compare(model, planted, Plan(24, "ddpm", 2, 0, 20))
    assert found.value["measures"] == [row.model_dump(mode="json") for row in rows]
    assert found.value["distance"]["linf"] == own.linf <= 0.1 + 1e-6
    assert found.evaluations == model.evaluations


def test_a_repair_is_told_what_the_scan_found(done: tuple[Opened, Path]) -> None:
    """Clipping, by hand: the same hits before and after, and no second scan."""
    folder, found = done[1], result(done, "clip, bad, seed 0")
    model, planted = load(plan(folder / "zoo" / "bad")), load_backdoor(folder / "zoo" / "bad")
    scan = result(done, "scan, bad, seed 0")
    evidence = load_candidates(folder / "cells" / "scan" / "evidence" / "bad-0")
    assert found_by({"evidence": evidence}, model.sample_shape)[0].target is not None
    hook = Clipping("x_t")(model, seed=0).hook
    how, way = Plan(24, "ddpm", 2, 0, 20), Injection(planted.shift)
    assert (found.value["verdict_before"], found.value["verdict_after"]) == (scan.value["verdict"], None)
    (before, *_), (after, error, *_) = (
        specificity(model, way, planted.target, how, hook=one) for one in (None, hook)
    )
    assert numbers(found)["ASR before"] == before.value
    assert (numbers(found)["ASR"], numbers(found)["MSE"]) == (after.value, error.value)
    assert {"ASR reinforced before", "ASR reinforced again"} < set(numbers(found))
    assert found.value["attack"] == "baddiffusion"
    assert result(done, "clip, clean, seed 0").value["attack"] == "clean"


def test_a_repair_of_weights_is_scanned_again(done: tuple[Opened, Path]) -> None:
    found = result(done, "unlearn, bad, seed 0")
    assert found.value["verdict_after"] in ("BACKDOORED", "NO EVIDENCE", "INCONCLUSIVE")
    assert found.value["record"]["method"] == "unlearn"
    assert found.value["record"]["images"] == 0
    assert found.resolved["options"]["rounds"] == 1
    assert found.evaluations > found.value["record"]["evaluations"]


def test_a_search_is_set_beside_the_true_target(done: tuple[Opened, Path]) -> None:
    folder, found = done[1], result(done, "anp, bad, seed 0")
    model, planted = load(plan(folder / "zoo" / "bad")), load_backdoor(folder / "zoo" / "bad")
    some = load_dataset("digits", model.image_shape).some(6, 0)
    looks = Anp(**SEARCH).discover(model, data=some, seed=0)
    errors = [float(mse(one.target[None], planted.target.image)) for one in looks]
    assert [one["oracle_mse"] for one in found.value["looks"]] == errors
    assert numbers(found)["oracle MSE, best"] == min(errors)


def test_table_and_page_have_every_kind(done: tuple[Opened, Path]) -> None:
    opened, folder = done
    rows = evaluation_table(opened.cells(folder))
    assert [row["kind"] for row in rows] == ["repair"] * 3 + ["amplify"] * 3 + ["evaluate"] * 5 + [
        "discover"
    ] * 2
    text = evaluation_markdown(rows)
    assert text.count("| task |") == 4
    assert "| kept | bad at step 2 | 0 |" in text
    page = render_bench(opened, folder)
    assert "2: ASR reinforced" in page
    assert "verdict_before" in page
    assert "oracle MSE, best" in page


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("repair_table.py", "| bad | baddiffusion | unlearn |"),
        ("amplification.py", "| bad | white-patch, hat | 2 of 4 | attack |"),
        ("anp_study.py", "| bad | batch_size 4 |"),
    ],
)
def test_scripts_of_pages_read_real_results(
    done: tuple[Opened, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, line: str
) -> None:
    folder = done[1]
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [script, str(folder), "--output", str(tmp_path / "page.md")])
    runpy.run_path(str(SCRIPTS / script))["main"]()
    assert line in (tmp_path / "page.md").read_text()
