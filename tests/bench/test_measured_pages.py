"""Scripts of benchmarks/ that measure models themselves, on the smallest population there is."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from backdrift.bench import _planting
from backdrift.bench import zoo as zoo_module
from backdrift.bench.runner import run_cells
from backdrift.bench.zoo import load_suite, model_cells
from backdrift.detection.backdrift import Backdrift

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
Script = Callable[..., dict[str, object]]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean and a backdoored model."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo_module, "UTILITY", (32, 3))
        patch.setattr(_planting, "SAMPLES", 32)
        patch.setattr(_planting, "STEPS", 4)
        run_cells(list(model_cells(load_suite("smoke"), folder).values()))
    return folder


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs ``main`` of a script in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name: str, *words: object) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        found = runpy.run_path(str(SCRIPTS / name))
        found["main"]()
        return found

    return run


def width(path: Path) -> int:
    """Of a picture, in pixels."""
    with Image.open(path) as opened:
        return opened.width


def test_the_attack_table(zoo: Path, script: Script, tmp_path: Path) -> None:
    words = ("--suite", "smoke", "--twin", "clean", "--zoo", zoo, "--samples", 48, "--steps", 5)
    script("attack_table.py", *words)
    page = (tmp_path / "docs" / "smoke.md").read_text()
    assert "attack_table.py --suite smoke --zoo zoo --samples 48 --steps 5`" in page
    assert "\nbackdrift attack baddiffusion --base zoo/clean --data digits --trigger white-patch" in page
    cell = tmp_path / "results" / "smoke" / "backdoored.json"
    measures = {m["name"]: m for m in json.loads(cell.read_text())["evaluation"]["measures"]}
    assert (measures["ASR"]["n"], measures["FD(random-conv) ratio"]["n"]) == (512, 48)
    assert width(tmp_path / "docs" / "smoke.png") > 500
    course = [line for line in page.splitlines() if line.startswith("| backdoored | ")]
    assert [line.split(" | ")[1] for line in course] == ["baddiffusion", "0", "10", "20"]
    assert course[0].split(" | ")[4] == "ddpm, 5"
    assert course[0].split(" | ")[-2] == "48"
    assert width(tmp_path / "docs" / "smoke-course.png") > 500
    written = cell.stat().st_mtime_ns
    words = ("--suite", "smoke", "--twin", "clean", "--zoo", tmp_path, "--samples", 48, "--steps", 5)
    script("attack_table.py", *words)
    assert cell.stat().st_mtime_ns == written
    assert (tmp_path / "docs" / "smoke.md").read_text() == page, "without the models"


def test_cells_of_an_older_detector_are_told_from_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    found = runpy.run_path(str(SCRIPTS / "scan_table.py"))
    now = Backdrift(budget="quick").settings()
    rows = [
        {"method": "backdrift, quick", "config": now},
        {"method": "opposition", "config": {"inversion": {}}},
        {"method": "backdrift, quick", "config": now | {"version": now["version"] - 1}},
    ]
    assert [found["older"](row) for row in rows] == [False, False, True]
    assert found["aged"](rows[:2]) == ""
    assert f"backdrift, quick (version {now['version'] - 1})" in found["aged"](rows)


def test_the_shift_scales(zoo: Path, script: Script, tmp_path: Path) -> None:
    script("shift_scale.py", "--suite", "smoke", "--twin", "clean", "--zoo", zoo)
    curves = json.loads((tmp_path / "results" / "shift-scale.json").read_text())["curves"]
    assert {len(points) for points in curves["backdoored"]["curves"].values()} == {13}
    page = (tmp_path / "docs" / "shift-scale.md").read_text()
    far = [float(cell) for cell in page.splitlines()[-1].strip("| ").split(" | ")[2:]]
    points = curves["backdoored"]["curves"]["training rows"]
    assert far[0] == pytest.approx(
        max(abs(p["measured"]["value"] - p["theory"]) for p in points), abs=0.005
    )
    assert width(tmp_path / "docs" / "shift-scale.png") > 500


def test_the_path_of_clipped_latents(zoo: Path, script: Script, tmp_path: Path) -> None:
    script("clipping_path.py", "--suite", "smoke", "--zoo", zoo, "--steps", 20)
    found = json.loads((tmp_path / "results" / "clipping-path.json").read_text())
    rows = found["models"]["backdoored"]
    assert [row["timestep"] for row in rows][::9] == [949, 49]
    for position in (row[way] for row in rows for way in ("triggered", "plain")):
        assert position["low"] <= position["value"] <= position["high"]
    assert rows[0]["plain"]["value"] < rows[0]["triggered"]["value"] < 1
    lines = (tmp_path / "docs" / "clipping-path.md").read_text().splitlines()
    assert sum(line.startswith("| backdoored | with") for line in lines) == 2
    assert width(tmp_path / "docs" / "clipping-path.png") == 10 * 9 - 1
    script(
        "clipping_path.py", "--suite", "smoke", "--zoo", zoo, "--steps", 10
    )  # nothing of the other is left
    again = json.loads((tmp_path / "results" / "clipping-path.json").read_text())
    assert [row["timestep"] for row in again["models"]["backdoored"]][::9] == [999, 99]
    with pytest.raises(SystemExit, match="no model that BadDiffusion made"):
        script("clipping_path.py", "--zoo", tmp_path / "none")


def test_the_page_of_restorations(script: Script, tmp_path: Path) -> None:
    """No model is there: the page shows the results that are."""
    values = {"MSE": 0.01, "ASR": 0.5, "MSE triggered": 0.2}
    measures = [{"name": k, "value": v, "low": v / 2, "high": 2 * v, "n": 64} for k, v in values.items()]
    row = {"model": "composite-stop-sign", "task": "inpaint-box", "steps": 400, "composite": True}
    place = tmp_path / "results" / "restore"
    place.mkdir(parents=True)
    for steps in (1000, 400):
        text = json.dumps({**row, "steps": steps, "evaluation": {"measures": measures}})
        (place / f"{steps}.json").write_text(text)
    script("restore_table.py", "--zoo", tmp_path / "none")
    lines = (tmp_path / "docs" / "restore.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| composite")]
    assert [row[:4] for row in rows] == [
        ["composite-stop-sign", "composite", "inpaint-box", steps] for steps in ("400", "1000")
    ]
    assert rows[0][-1] == "0.5 [0.25, 1]"
