"""What the headline is made of, without models: calls in turn, ratios with intervals, losses over seeds, verdicts.

    in turn    a message through every contender, each after another one's call: caches are as the others left them
    in a row   the next message right after it, through the same contender: its weights are where it left them
    ratio      sum of the reference's times / sum of this one's over the same messages: the ratio of means
    interval   2.5% and 97.5% percentiles of that ratio over 1000 resamples of the messages, both drawn together

What is claimed is the ratio in turn. The ratio in a row stands beside it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns, process_time_ns
from typing import Any

import numpy as np

from flyweight.measure.bootstrap import Loss
from flyweight.measure.latency import summarise, turn

N_WARMUP = 10
N_BOOTSTRAP = 1000
LOSS_FIELDS = ("parent", "child", "loss_percent", "low_percent", "high_percent")


@dataclass(frozen=True)
class Times:
    """Nanoseconds of one contender's calls, (n,) int64 each: wall-clock in turn and in a row, CPU time in turn."""

    turn: np.ndarray
    row: np.ndarray
    cpu: np.ndarray


def alternate(
    calls: dict[str, Callable[[str], object]],
    texts: Sequence[str],
    n_calls: int,
    *,
    seed: int = 0,
    n_warmup: int = N_WARMUP,
    wall: Callable[[], int] = perf_counter_ns,
    cpu: Callable[[], int] = process_time_ns,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Times]:
    """Every contender on the same messages, in an order shuffled by the seed; the order of the contenders changes too.

    Untimed rounds go first, on the messages from the end of that order. advance(1) is called after every round.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    names = list(calls)
    for i in range(n_warmup):
        for name in turn(names, i):
            calls[name](texts[order[-1 - i % len(texts)]])
    gc.collect()
    taken: dict[str, list[tuple[int, int, int]]] = {name: [] for name in names}
    for i in range(n_calls):
        this, following = (texts[order[(i + step) % len(texts)]] for step in (0, 1))
        for name in turn(names, i):
            call = calls[name]
            cpu_begin, begin = cpu(), wall()
            call(this)
            between, cpu_end = wall(), cpu()
            row_begin = wall()
            call(following)
            taken[name].append((between - begin, wall() - row_begin, cpu_end - cpu_begin))
        advance(1)
    return {name: Times(*np.array(rows, dtype=np.int64).T) for name, rows in taken.items()}


def ratio(reference: np.ndarray, this: np.ndarray, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> dict[str, float]:
    """mean(reference) / mean(this) over the same calls (n,), with its 95% paired bootstrap interval."""
    drawn = np.random.default_rng(seed).integers(len(this), size=(n_bootstrap, len(this)))
    low, high = np.percentile(reference[drawn].sum(axis=1) / this[drawn].sum(axis=1), [2.5, 97.5])
    return {"ratio": float(reference.sum() / this.sum()), "low": float(low), "high": float(high)}


def fastest(times: dict[str, Times], names: Iterable[str]) -> str | None:
    """The one of these with the smallest mean in turn; None where none was timed."""
    return min((n for n in names if n in times), key=lambda name: times[name].turn.mean(), default=None)


def timed_row(times: dict[str, Times], name: str, references: dict[str, str | None]) -> dict[str, Any]:
    """Milliseconds of one contender, and against each reference (title -> name) the ratios of means."""
    own = times[name]
    found: dict[str, Any] = summarise(own.turn.tolist()).to_dict()
    found |= {"row_mean_ms": float(own.row.mean() / 1e6), "cpu_mean_ms": float(own.cpu.mean() / 1e6)}
    for title, reference in references.items():
        if reference is not None:
            of = times[reference]
            found[title] = {
                "reference": reference,
                **ratio(of.turn, own.turn),
                "row": ratio(of.row, own.row),
                "cpu": ratio(of.cpu, own.cpu),
            }
    return found


def mean_loss(losses: Sequence[dict[str, float]]) -> Loss:
    """Mean over seeds. The interval is the mean of the seeds': the interval of the mean itself can only be narrower."""
    return Loss(**{field: float(np.mean([x[field] for x in losses])) for field in LOSS_FIELDS})


def verdict_over_sets(losses: Sequence[Loss], bound_percent: float) -> dict[str, Any]:
    """The mean of the sets' losses against a bound: proved, met or missed, and by how many points of percent."""
    mean = {k: float(np.mean([getattr(x, k) for x in losses])) for k in LOSS_FIELDS}
    found = Loss(**mean)
    over = max(found.loss_percent - bound_percent, 0.0)
    return {**mean, "bound_percent": bound_percent, "verdict": found.verdict(bound_percent), "missed_by": over}
