"""Progress of long work, on stderr, with time left: a live bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[..., None]  # advance(n=1, note="")
LOG_SECONDS = 20.0  # between two lines of a log


@contextmanager
def bar(what: str, total: int, done: int = 0, show: bool = True) -> Iterator[Advance]:
    """`with bar("training", 500) as advance: advance(1, note="loss 0.3")`."""
    if not show or total <= 0:
        yield lambda n=1, note="": None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as live:
            task = live.add_task(what, total=total, completed=done, note="")

            def advance(n: int = 1, note: str = "") -> None:
                live.advance(task, n)
                if note:
                    live.update(task, note=note)

            yield advance
    else:
        yield _Log(what, total, done)


class _Log:
    """One line every LOG_SECONDS and at the end."""

    def __init__(self, what: str, total: int, done: int):
        self.what, self.total, self.done, self.first = what, total, done, done
        self.start = self.last = time.monotonic()
        self.note = ""

    def __call__(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        if now - self.last < LOG_SECONDS and self.done < self.total:
            return
        self.last = now
        left = (now - self.start) / max(self.done - self.first, 1) * (self.total - self.done)
        print(f"{self.what}: {self.done}/{self.total}, {left:.0f} s left  {self.note}", file=sys.stderr, flush=True)
