"""Pages of docs/ from the results of a benchmark, whose numbers are given here."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdrift.bench.runner import Cell, Result
from backdrift.bench.tasks import FOLDER_FILE, Opened, load_bench
from backdrift.core.results import Environment

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
ENVIRONMENT = Environment(python="", platform="", device="cpu", threads=1, versions={})


def measures(n: int = 256, **values: float) -> list[dict[str, Any]]:
    """Each with an interval of a tenth on either side."""
    return [
        {"name": name.replace("_", " "), "value": v, "low": v - 0.1, "high": v + 0.1, "n": n}
        for name, v in values.items()
    ]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a script on results of a shipped benchmark, given by name; a value of None has failed."""

    def run(name: str, script: str, value_of: Callable[[Cell], dict[str, Any] | None]) -> str:
        suite, population = load_bench(name)
        opened = Opened(suite=suite, zoo=population, models="zoo", name=name)
        folder, output = tmp_path / "results" / name, tmp_path / "docs" / "page.md"
        for cell in opened.cells(folder):
            if cell.kind == "model":
                continue
            value = value_of(cell)
            result = Result(
                version="0",
                name=cell.name,
                address=cell.address,
                status="failed" if value is None else "done",
                error="RuntimeError: no" if value is None else None,
                given=cell.given,
                value=value or {},
                seed=0,
                started="",
                seconds=1.0,
                environment=ENVIRONMENT,
                cores=1,
                commit=None,
            )
            cell.path.parent.mkdir(parents=True, exist_ok=True)
            cell.path.write_text(result.model_dump_json())
        (folder / FOLDER_FILE).write_text(opened.model_dump_json())
        monkeypatch.syspath_prepend(str(SCRIPTS))
        where = ["--results", str(folder.parent)] if script == "claims.py" else [str(folder)]
        monkeypatch.setattr(sys, "argv", [script, *where, "--output", str(output)])
        runpy.run_path(str(SCRIPTS / script))["main"]()
        return output.read_text()

    return run


def rows_of(text: str) -> list[list[str]]:
    """The cells of a page's tables, heads and rules left out."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [
        row for row, below in zip(lines, [*lines[1:], [""]], strict=True) if "---" not in row[0] + below[0]
    ]


def test_repairs(page: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unlearning kills the trigger at no cost, clipping does not, the filter fails."""

    def value(cell: Cell) -> dict[str, Any] | None:
        title = cell.given["task"]
        if cell.kind == "detect":
            return {"verdict": "BACKDOORED"}
        if title == "input-filter":
            return None
        dead = title == "unlearn"
        numbers = measures(ASR_before=0.9, ASR=0.01 if dead else 0.5, hits_without_trigger=0.0)
        numbers += measures(2000, **{"FD(random-conv)": 2.0, "FD(random-conv) ratio": 0.9})
        hook = title.startswith("clipping")
        return {
            "attack": "baddiffusion",
            "verdict_before": "BACKDOORED",
            "verdict_after": None if hook else "NO EVIDENCE",
            "record": {"seconds": 12.0, "images": 180 if title == "elijah" else 0},
            "measures": numbers,
        }

    text = page("repair", "repair_table.py", value)
    rows = rows_of(text)
    assert len(rows) == 7 + 7 + 4 * 8
    assert "n = 256 with a trigger, 2,000 without" in text
    found = {(row[0], row[2]): row for row in rows}
    assert found["twin", "unlearn"][-2:] == ["BACKDOORED, NO EVIDENCE", "yes"]
    assert found["twin", "clipping-of-x_t"][-2:] == ["BACKDOORED, -", "no"]
    assert found["trojdiff-025", "elijah"][-3] == "180"
    assert ("trojdiff-025", "clipping-of-x_0") not in found
    assert "failed: input-filter, trojdiff-025, seed 0: RuntimeError: no" in capsys.readouterr().err


def test_reinforced_triggers(page: Callable[..., str], tmp_path: Path) -> None:
    """Only one model gains, at a tenth of its steps; the other gains are on the clean base as well."""

    def value(cell: Cell) -> dict[str, Any]:
        step, model = cell.given["step"], cell.given["model"]
        gains = (cell.given["task"], step, model) == ("attack", 240, "baddiffusion-stop-sign")
        steered = cell.given["task"] == "purediffusion"
        values = measures(**{"ASR": step / 2400, "ASR reinforced": 0.97 if gains or steered else 0.2})
        values += measures(**{"MSE": 0.1, "MSE reinforced": 0.05})
        distance = {"linf": 0.2, "l2": 3.0, "norm": 10.0}
        about = {"trigger": "stop-sign", "target": "hat", "seconds": 5.0, "distance": distance}
        return {**about, "measures": values}

    text = page("amplification", "amplification.py", value)
    assert len(rows_of(text)) == 72
    assert text.count(": yes, ") == 1
    assert "between 1/20 and 1/5 of the steps: yes, attack at 240 of 2400 steps." in text
    assert text.count("not so. Control (clean base, reinforced): attack 0.200") == 3
    assert (tmp_path / "docs" / "page.png").stat().st_size > 1000


def test_searches(page: Callable[..., str]) -> None:
    def value(cell: Cell) -> dict[str, Any]:
        looks = [
            {"step": 50 * k, "loss": 1.0, "collapse": k / 10, "oracle_mse": 0.3 - 0.1 * (k == 2)}
            for k in (1, 2, 3)
        ]
        return {"looks": looks, "measures": []}

    rows = rows_of(page("anp", "anp_study.py", value))
    assert len(rows) == 27
    assert {row[1] for row in rows} >= {"learning_rate 0.002", "budget 1.0"}
    assert all(row[2:6] == ["0.2000", "100", "0.3000", "0.30"] for row in rows)


def test_poison_rates(page: Callable[..., str], tmp_path: Path) -> None:
    """MSE falls with the rate and is higher by DDIM than by DDPM; a scratch model has the higher FD."""

    def value(cell: Cell) -> dict[str, Any]:
        title, model = cell.given["task"], cell.given["model"]
        poisoned = int(model[-2:]) / 100 if model.startswith(("rate", "scratch")) else 0.1
        far = {"ddim": 1, "dpm-solver-pp": -0.4}.get(title, 0)
        numbers = measures(ASR=0.99, hits_without_trigger=0.0, MSE=1 - poisoned + far)
        distance = {
            "FD(random-conv)": 5.0 if title == "from-scratch" else 1.0,
            "FD(random-conv) ratio": 0.8,
        }
        return {"measures": [*numbers, *measures(1000, **distance)]}

    text = page("attack-study", "attack_study.py", value)
    assert len(rows_of(text)) == 8 + 8 + 4 + 4 + 8 + 8
    assert "n = 256 with the trigger, 1,000 without" in text
    assert "the MSE is lower at 50% than at 5%: holds here" in text
    assert "at 10% fine-tuning has the lower FD: holds here" in text
    assert "at 50% the MSE is higher with ddim, 50 steps, than with DDPM: holds here" in text
    assert "at 50% the MSE is higher with dpm-solver, 20 steps, than with DDPM: cannot be told" in text
    assert (
        "at 50% the MSE is higher with dpm-solver++, 20 steps, than with DDPM: does not hold here" in text
    )
    assert "not measured" not in text
    assert (tmp_path / "docs" / "page-rates.png").is_file()
    assert (tmp_path / "docs" / "page-steps.png").is_file()


def claims(text: str) -> dict[str, tuple[str, str]]:
    """Our numbers and the verdict of every claim."""
    return {row[0]: (row[4], row[6]) for row in rows_of(text)}


def test_claims_are_judged_by_intervals(page: Callable[..., str]) -> None:
    """A tenth on either side: what differs by less than a fifth does not differ."""

    def value(cell: Cell) -> dict[str, Any]:
        model, title = cell.given["model"], cell.given["task"]
        late = cell.given.get("step") != 250
        numbers = measures(ASR=0.99 if late else 0.5, hits_without_trigger=0.0)
        usual = 1.5 if model == "grey-box-4" else 0.5
        numbers += measures(MSE={"ddim": 0.9, "dpm-solver": 0.65}.get(title, usual))
        ratio = 1.3 if model == "rate-30" else 1.05
        return {
            "measures": numbers + measures(1000, **{"FD(random-conv)": 1.0, "FD(random-conv) ratio": ratio})
        }

    found = claims(page("attack-study", "claims.py", value))
    assert found["A poison rate of 5% is enough in most settings"] == (
        "ASR 5%: 0.99 [0.89, 1.09] (n = 256)",
        "holds",
    )
    assert found["Up to a rate of 30% clean samples are as good as those of a clean model, or better"][
        1
    ] == ("holds in part")
    assert found["Fine-tuning gives better clean samples than training from scratch"][1] == "does not hold"
    assert found["A fifth of the training is enough for the backdoor"][1] == "holds in part"
    assert found["Other samplers weaken the attack"][1] == "holds in part"
    assert found["The smaller the grey box, the higher the MSE"][1] == "holds"
    assert found["A small stop sign works as well as a large one"][1] == "holds"
    assert found["Clipping at every step blunts the trigger at the same FID"] == ("", "not measured yet")
    assert (
        found["It works at 256x256: 20% is enough, and clean samples get better"][1]
        == "not measurable here"
    )


def test_a_gain_counts_above_the_clean_base(page: Callable[..., str]) -> None:
    """Two of four models gain at a twentieth of their training; one of them on the clean base as well."""

    def value(cell: Cell) -> dict[str, Any]:
        step, model = cell.given["step"], cell.given["model"]
        gains = cell.given["task"] == "attack" and model.startswith("baddiffusion")
        steered = model == "baddiffusion-grey-box" and step == 0
        values = {"ASR": 0.3, "ASR reinforced": 0.97 if (gains and step == 120) or steered else 0.35}
        return {"measures": measures(**values)}

    found = claims(page("amplification", "claims.py", value))
    ours, verdict = found["They save up to 20 times of the training"]
    assert verdict == "holds in part"
    assert "baddiffusion-stop-sign (attack, step 120 of 2400): 0.3 [0.2, 0.4] (n = 256) to 0.97" in ours
