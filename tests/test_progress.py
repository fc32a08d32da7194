"""Progress goes to stderr: a live bar in a terminal, a line now and then in a log, nothing when it is off."""

from __future__ import annotations

import io
import re

import pytest

from flyweight import progress
from flyweight.progress import LOG_SECONDS, bar


class Clock:
    """time.monotonic under the test's hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_log_has_a_line_now_and_then_and_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with bar("training", 10) as advance:
        advance(1, note="loss 3.000")
        assert lines(capsys) == []  # not yet
        clock.now += LOG_SECONDS - 0.5
        advance(1)
        assert lines(capsys) == []
        clock.now += 0.5
        advance(2)
        # 4 of 10 in 20 s: 6 more take 30 s; the last note stays
        assert lines(capsys) == ["training: 4/10, 30 s left  loss 3.000"]
        advance(5, note="loss 1.000")
        assert lines(capsys) == []  # the clock starts anew after each line
        advance(1)
        assert lines(capsys) == ["training: 10/10, 0 s left  loss 1.000"]


def test_resumed_work_counts_its_own_time_only(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with bar("training", 100, done=60) as advance:
        clock.now += LOG_SECONDS
        advance(10)
    # 10 steps in 20 s since the start: 30 more take 60 s (not 70 in 20 s)
    assert lines(capsys) == ["training: 70/100, 60 s left  "]


@pytest.mark.parametrize(("total", "show"), [(5, False), (0, True), (-1, True)])
def test_nothing_to_show(total: int, show: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with bar("training", total, show=show) as advance:
        advance()
        advance(3, note="loss")
        advance(n=1, note="")
    assert lines(capsys) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_within_passes_through(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal() if terminal else io.StringIO())

    def work() -> None:
        with bar("work", 3) as advance:
            advance()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        work()


def test_a_terminal_has_a_live_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stderr", terminal)
    with bar("k-means", 7, done=2) as advance:
        advance(4, note="layer 3")
        advance()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "k-means" in shown
    assert "7/7" in shown
    assert "layer 3" in shown  # kept by an advance without a note
    assert capsys.readouterr().out == ""
