"""What long work prints where there is no terminal."""

from __future__ import annotations

import pytest

from backdrift.cli import _progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_time_left_counts_from_where_the_part_began(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with _progress.progress_bar("train") as show:
        assert show is not None
        for step, done in enumerate([700, 710, 720]):
            clock[0] = 100.0 + 20 * step
            show(done, 800, "resumed")
        clock[0] = 200.0
        show(1, 50, "next")
        clock[0] = 220.0
        show(11, 50, "next")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 700/800, 0 s, resumed"
    assert "720/800, 40 s, about 160 s left, resumed" in lines[2]
    assert lines[3] == "train: 1/50, 100 s, next"
    assert "11/50, 120 s, about 78 s left, next" in lines[4]


def test_lines_are_fifteen_seconds_apart(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with _progress.progress_bar("scan") as show:
        assert show is not None
        for second in range(61):
            clock[0] = 100.0 + second
            show(second + 1, 100, "working")
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_quiet_says_nothing() -> None:
    with _progress.progress_bar("scan", quiet=True) as show:
        assert show is None


def test_a_name_is_neither_markup_nor_control(capsys: pytest.CaptureFixture[str]) -> None:
    with _progress.progress_bar("[/red]\x1b[2J") as show:
        assert show is not None
        show(1, 2, "[bold]")
    assert "\x1b" not in capsys.readouterr().err
    bar = _progress._bar("[/red]")
    next(bar)(1, 2, "[/bold]")
    bar.close()
