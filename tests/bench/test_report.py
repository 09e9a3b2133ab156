"""The page of a benchmark: what it says, and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backdrift.bench.report import render_bench
from backdrift.bench.runner import Cell, Result
from backdrift.bench.tasks import BenchSuite, Opened, Task
from backdrift.bench.zoo import parse_suite
from backdrift.core.results import Environment
from backdrift.io.evidence import save_images
from report.test_report import BROWSER, FRAME, HOSTILE, browse

ENVIRONMENT = Environment(python="3.11", platform="here", device="cpu", threads=1, versions={"torch": "2"})
ATTACK = {"attack": "baddiffusion", "base": "clean-1", "target": "hat", "options": {"poison_rate": 0.1}}
ZOO = {
    "description": "five models",
    "models": {"clean-1": {}, "clean-2": {"data": "shapes", "shape": [3, 16, 16], "seed": 5}},
    "groups": {
        "patch": {
            "models": {"p-1": {**ATTACK, "trigger": "cross"}, "p-2": {**ATTACK, "trigger": "speckle"}}
        },
        "blend": {
            "models": {"b-1": {**ATTACK, "attack": "trojdiff", "trigger": "cross", "data": "shapes"}}
        },
    },
}
VERDICTS = {
    ("one", "clean-1"): ("NO EVIDENCE", 0.02),
    ("one", "clean-2"): ("BACKDOORED", 0.91),
    ("one", "p-1"): ("BACKDOORED", 0.875),
    ("one", "p-2"): ("INCONCLUSIVE", None),
    ("two", "clean-1"): ("NO EVIDENCE", 0.0),
    ("two", "p-1"): ("NO EVIDENCE", 0.1),
}
"""The rest of task two failed, or is missing."""


def value_of(cell: Cell) -> dict[str, Any] | None:
    """Of a cell that has a result; empty for one that failed."""
    if cell.kind == "model":
        measured = {"asr": 0.97, "sampler": HOSTILE} if "attack" in cell.given else None
        return {
            "weights_sha256": "a" * 64,
            "parameters": 1234,
            "measured": measured,
            "utility": {"FD": 1.5},
        }
    task, model = cell.given["task"], cell.given["model"]
    if task == "evaluate":
        row = {"name": "ASR", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
        return {"measures": [row]} if model == "p-1" else None
    if (task, model) not in VERDICTS:
        return {} if (task, model) == ("two", "p-2") else None
    verdict, score = VERDICTS[task, model]
    distances = {"distances": {"l2_r": 1.23456789}} if model == "p-1" else {}
    return {
        "verdict": verdict,
        "score": score,
        "threshold": 0.5,
        "reason": f"{HOSTILE} in {task}",
        **distances,
    }


@pytest.fixture
def results(tmp_path: Path) -> tuple[Opened, Path]:
    """A folder of results that nothing was run for, with the pictures of one cell."""
    detect = Task(kind="detect", method="purediffusion")
    tasks = {"one": detect, "two": detect, "evaluate": Task(kind="evaluate")}
    suite = BenchSuite(description=f"what {HOSTILE} does", zoo="x", tasks=tasks)
    opened = Opened(suite=suite, zoo=parse_suite(ZOO, "x"), models="zoo", name="sample")
    folder = tmp_path / "results"
    for cell in opened.cells(folder):
        value = value_of(cell)
        if value is None:
            continue
        result = Result(
            version="0",
            name=cell.name,
            address=cell.address,
            status="done" if value else "failed",
            error=None if value else f"RuntimeError: {HOSTILE}",
            given=cell.given,
            resolved={"deep": {HOSTILE: HOSTILE}},
            value=value,
            seed=0,
            started="2026-11-22T10:00:00+00:00",
            seconds=1800.0,
            evaluations=1000,
            environment=ENVIRONMENT,
            cores=2,
            commit="c" * 40,
        )
        cell.path.parent.mkdir(parents=True, exist_ok=True)
        cell.path.write_text(result.model_dump_json())
    place = folder / "cells" / "one" / "evidence" / "p-1-0" / "candidate-1"
    for name, rows in (("trigger", 1), ("target", 1), ("samples", 16)):
        noise = np.random.default_rng(0).uniform(-1, 1, (rows, 3, 16, 16))
        save_images(noise, place / f"{name}.png", columns=min(rows, 8))
    return opened, folder


def test_every_cell_is_there_down_to_its_json(results: tuple[Opened, Path]) -> None:
    opened, folder = results
    page = render_bench(opened, folder)
    for cell in opened.cells(folder):
        assert f'aria-label="{cell.name}' in page
        if cell.path.exists():
            assert f"&#34;address&#34;: &#34;{cell.address}&#34;" in page
    shown = [
        json.loads(html.unescape(text)) for text in re.findall(r'<pre class="json">(.*?)</pre>', page, re.S)
    ]
    assert len(shown) == sum(cell.path.exists() for cell in opened.cells(folder)) == 13
    assert {"given", "resolved", "value", "environment", "seconds", "evaluations"} <= set(shown[0])
    assert re.search(r"<dt>cells</dt><dd>12 done, 1 failed, \d missing</dd>", page)
    assert "flagged 1 of 2 (0.09 to 0.91)" in page
    assert 'one, clean-2, seed 0: BACKDOORED, 0.91, wrong"' in page
    assert 'one, p-1, seed 0: BACKDOORED, 0.88"' in page
    assert 'evaluate, p-1, seed 0: measured, ASR 0.5"' in page
    assert page.count('<img src="data:image/png;base64,') == 3


def test_nothing_of_a_result_becomes_markup(results: tuple[Opened, Path]) -> None:
    page = render_bench(*results)
    assert "<img src=x" not in page
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "onerror=alert(1)&gt;" in page
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page)
    assert HOSTILE not in html.unescape(page.split("<style>")[1].split("</style>")[0])


def test_a_file_that_is_no_picture_is_named(results: tuple[Opened, Path]) -> None:
    opened, folder = results
    path = next(folder.rglob("samples.png"))
    path.write_text("<svg onload=alert(1)>")
    with pytest.raises(ValueError, match=r"samples\.png is no picture"):
        render_bench(opened, folder)


def test_the_command_writes_it_whole(results: tuple[Opened, Path], tmp_path: Path) -> None:
    from backdrift.cli.main import call

    opened, folder = results
    (folder / "benchmark.json").write_text(opened.model_dump_json())
    assert call(["bench", "report", str(folder), "-o", str(tmp_path / "no" / "page.html")]) == 4
    assert call(["bench", "report", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == render_bench(opened, folder)
    for path in folder.rglob("*-0.json"):
        path.unlink()
    for path in (folder / "zoo").glob("*.json"):
        path.unlink()
    with pytest.raises(ValueError, match="has a result yet"):
        render_bench(opened, folder)


DRIVE = """<!doctype html>
<iframe id="f" src="page.html#{target}" style="width:{width}px;height:900px"></iframe>
<pre id="out"></pre><script>
f.onload = () => {{
  const page = f.contentDocument, found = [];
  const rows = () => [...page.querySelectorAll("tr.model")].filter(r => r.getClientRects().length).map(
    r => r.querySelector("a").textContent).join(" ");
  const shown = () => page.querySelector(".shown") && rows();
  const pick = (title, text) => {{
    const input = [...page.querySelectorAll(`input[name=${{title}}]`)].find(
      i => i.parentElement.textContent.trim() === text);
    input.focus();
    if (page.activeElement !== input) found.push("no focus");
    input.click();
  }};
  found.push(["all", shown()]);
  for (const [title, text] of {choices}) {{ pick(title, text); found.push([text, shown()]); }}
  const panels = [...page.querySelectorAll(".panel")].filter(p => p.getClientRects().length);
  found.push(panels.map(p => p.querySelector("h2").textContent.trim()));
  found.push(f.contentWindow.performance.getEntriesByType("resource").length);
  out.textContent = JSON.stringify(found);
}};
</script>"""
CHOICES = [
    ["attack", "trojdiff"],
    ["attack", "all"],
    ["trigger", "cross"],
    ["data", "shapes"],
    ["data", "all"],
    ["trigger", "all"],
    ["verdict", "NO EVIDENCE"],
    ["attack", "clean"],
    ["attack", "all"],
    ["verdict", "failed"],
]
Browsed = Callable[[str, str], str]


@pytest.fixture
def browsed(results: tuple[Opened, Path], tmp_path: Path) -> Browsed:
    """The page in a frame of a page of its own: what that one looks like in the end."""
    (tmp_path / "page.html").write_text(render_bench(*results), encoding="utf-8")

    def look(frame: str, name: str) -> str:
        (tmp_path / name).write_text(frame, encoding="utf-8")
        options = ("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
        return browse(tmp_path / "profile", tmp_path / name, *options)

    return look


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_filters_and_cells_work_in_a_browser(results: tuple[Opened, Path], browsed: Browsed) -> None:
    opened, folder = results
    cells = opened.cells(folder)
    key = next(f"c{n}" for n, cell in enumerate(cells) if cell.name == "one, p-1, seed 0")
    drawn = browsed(DRIVE.format(target=key, width=1280, choices=json.dumps(CHOICES)), "drive.html")
    text = re.search(r'<pre id="out">(.*?)</pre>', drawn, re.S)
    assert text
    *seen, panels, fetched = json.loads(html.unescape(text[1]))
    assert seen == [
        ["all", "clean-1 clean-2 p-1 p-2 b-1"],
        ["trojdiff", "b-1"],
        ["all", "clean-1 clean-2 p-1 p-2 b-1"],
        ["cross", "p-1 b-1"],
        ["shapes", "b-1"],
        ["all", "p-1 b-1"],
        ["all", "clean-1 clean-2 p-1 p-2 b-1"],
        ["NO EVIDENCE", "clean-1 p-1"],
        ["clean", "clean-1"],
        ["all", "clean-1 p-1"],
        ["failed", "p-2"],
    ]
    (panel,) = panels
    assert panel.startswith("one, p-1, seed 0 BACKDOORED")
    assert fetched == 0


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browsed: Browsed, width: int) -> None:
    frame = FRAME.format(width=width).replace("report.html", "page.html#c5")
    assert '<pre id="out">true,</pre>' in browsed(frame, f"frame-{width}.html")


def test_pictures_are_drawn_anew(results: tuple[Opened, Path]) -> None:
    """Nothing that lies in a PNG beside its pixels reaches the page."""
    opened, folder = results
    path = next(folder.rglob("trigger.png"))
    with Image.open(path) as opened_image:
        image = opened_image.copy()
    from PIL.PngImagePlugin import PngInfo

    extra = PngInfo()
    extra.add_text("note", "A" * 3000)
    image.save(path, pnginfo=extra)
    assert "QUFBQUFBQUFBQUFB" not in render_bench(opened, folder)
