"""The shipped models, as stock diffusers writes them again: no label is left, and the verdicts stay."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDPMPipeline

SHIPPED = Path(str(resources.files("backdrift").joinpath("models")))


@pytest.fixture(scope="module")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stripped")
    for name in ("backdoored", "clean"):
        DDPMPipeline.from_pretrained(SHIPPED / name).save_pretrained(folder / name)
    assert not list(folder.rglob("*ackdoor*.json")) + list(folder.rglob("*.md"))
    return {name: folder / name for name in ("backdoored", "clean")}


def test_the_gravest_answer_decides_the_exit_code(
    cli: Any, stripped: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    folders = (broken, stripped["clean"], stripped["backdoored"])
    ran = cli("scan", *folders, "--budget", "quick", "--format", "json", "--seed", 0)
    reports = ran.document["reports"]
    assert [(r["verdict"], r["exit_code"]) for r in reports] == [("NO EVIDENCE", 0), ("BACKDOORED", 1)]
    assert [r["subject"]["declared"] for r in reports] == [False, False]
    assert ran.document["failures"][0]["exit_code"] == 3
    assert ran.code == ran.document["exit_code"] == 1


def test_labels_do_not_move_the_score(cli: Any, stripped: dict[str, Path]) -> None:
    """Weights are the same numbers in float16 and in float32, so every draw is."""
    answers = []
    for folder in (SHIPPED / "backdoored", stripped["backdoored"]):
        ran = cli("detect", "backdrift", folder, "--budget", "quick", "--seed", 3)
        assert ran.code == 1, ran.err
        answers.append(ran.document["reports"][0])
    assert [a["subject"]["declared"] for a in answers] == [True, False]
    assert answers[0]["findings"][0]["score"] == answers[1]["findings"][0]["score"]
