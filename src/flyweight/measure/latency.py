"""How long does one message take, and how much faster is the child? Every callable in one process run, interleaved.

    one round   = one message through every callable; the order of the callables changes each round
    p50, p95, p99, mean, best     milliseconds over `n_calls` rounds, batch 1
    ratio       = mean of the parent / mean of the child           what is claimed ("37x faster")

A callable is whatever the user would call: tokenizer included. Wrap `compare` in `single_thread()` to claim one core.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np

from flyweight.errors import ConfigError


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call at batch 1. `calls_ms` are the calls in order: call i had the same message everywhere."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    best_ms: float
    n_calls: int
    calls_ms: tuple[float, ...] = field(repr=False)

    def to_dict(self) -> dict[str, float]:
        """The summary as plain numbers, without the single calls."""
        return {name: getattr(self, name) for name in ("p50_ms", "p95_ms", "p99_ms", "mean_ms", "best_ms", "n_calls")}


@dataclass(frozen=True)
class Ratio:
    """How many times faster a child is: `of_means` is what is claimed, `median_per_call` shows if outliers made it."""

    of_means: float
    median_per_call: float


def compare(
    callables: dict[str, Callable[[str], object]],
    texts: Sequence[str],
    *,
    n_calls: int = 300,
    n_warmup: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Latency]:
    """Time every callable on the same messages, call by call in turn, so that a busy moment hits all alike.

    Messages come in one order shuffled by `seed`, again from the start when `n_calls` is more than there are.
    `n_warmup` untimed rounds go first, on the messages from the end of that order. Garbage is collected before the
    clock starts, and collection stays on, as in service. `progress(n_rounds_done, n_calls)` is called between rounds.
    """
    _check(callables, texts, n_calls, n_warmup)
    order = np.random.default_rng(seed).permutation(len(texts))
    names = list(callables)
    for i in range(n_warmup):
        for name in turn(names, i):
            callables[name](texts[order[-1 - i % len(texts)]])
    gc.collect()
    taken_ns: dict[str, list[int]] = {name: [] for name in names}
    for i in range(n_calls):
        text = texts[order[i % len(texts)]]
        for name in turn(names, i):
            call = callables[name]
            begin = perf_counter_ns()
            call(text)
            taken_ns[name].append(perf_counter_ns() - begin)
        if progress is not None:
            progress(i + 1, n_calls)
    return {name: summarise(taken) for name, taken in taken_ns.items()}


def turn(names: Sequence[str], round_index: int) -> list[str]:
    """The order of the callables in a round: every second round backwards, the start moving on every two rounds.

    For a, b, c: abc cba bca acb cab bac. In 2k rounds each of the k is at each place twice, and whom it follows
    changes; a plain rotation would leave b behind a for ever, on the caches that a left.
    """
    shift = (round_index // 2) % len(names)
    turned = [*names[shift:], *names[:shift]]
    return turned[::-1] if round_index % 2 else turned


def summarise(taken_ns: Sequence[int]) -> Latency:
    """`Latency` of single calls in nanoseconds. A call below the clock's step counts 1 ns, so ratios stay finite."""
    ms = np.maximum(np.asarray(taken_ns, dtype=np.float64), 1.0) / 1e6
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    calls = tuple(ms.tolist())
    return Latency(float(p50), float(p95), float(p99), float(ms.mean()), float(ms.min()), len(calls), calls)


def ratio(parent: Latency, child: Latency) -> Ratio:
    """mean(parent) / mean(child), and median over i of parent[i] / child[i]; both from one `compare`.

    Errors: ConfigError when they have different numbers of calls, so cannot be from one run.
    """
    if parent.n_calls != child.n_calls:
        raise ConfigError(
            f"parent was timed on {parent.n_calls} calls, child on {child.n_calls}; time both in one compare()"
        )
    per_call = np.array(parent.calls_ms) / np.array(child.calls_ms)
    return Ratio(parent.mean_ms / child.mean_ms, float(np.median(per_call)))


def throughput(batch_callable: Callable[[list[str]], object], texts: Sequence[str], batch_size: int = 64) -> float:
    """Messages per second over one pass through `texts` in batches, after one untimed batch. Threads as they are."""
    if not texts or batch_size < 1:
        raise ConfigError(f"{len(texts)} texts in batches of {batch_size}; both must be at least 1")
    batches = [list(texts[first : first + batch_size]) for first in range(0, len(texts), batch_size)]
    batch_callable(batches[0])
    begin = perf_counter_ns()
    for batch in batches:
        batch_callable(batch)
    return len(texts) * 1e9 / max(perf_counter_ns() - begin, 1)


@contextmanager
def single_thread() -> Iterator[None]:
    """Everything known to start threads is held to one inside the block, and set back after it.

    - PyTorch, only where it is loaded already (nothing is imported for it): `torch.set_num_threads(1)`
    - BLAS and OpenMP pools of libraries loaded already, where the optional package threadpoolctl is installed
    - tokenizers' batch threads: the environment variable TOKENIZERS_PARALLELISM=false

    PyTorch's inter-op pool is not touched (it can be sized once only, and plain forwards do not use it).
    """
    with ExitStack() as stack:
        torch: Any = sys.modules.get("torch")
        if torch is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            pass
        else:
            stack.enter_context(threadpool_limits(limits=1))
        stack.callback(_set_environment, "TOKENIZERS_PARALLELISM", os.environ.get("TOKENIZERS_PARALLELISM"))
        _set_environment("TOKENIZERS_PARALLELISM", "false")
        yield


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _check(callables: dict[str, Callable[[str], object]], texts: Sequence[str], n_calls: int, n_warmup: int) -> None:
    if not callables:
        raise ConfigError("nothing to time; give at least one callable, by name")
    if not texts:
        raise ConfigError("no texts to time; give real messages, 300 or more for a claim")
    if n_calls < 1 or n_warmup < 0:
        raise ConfigError(f"n_calls={n_calls}, n_warmup={n_warmup}; n_calls must be 1 or more, n_warmup 0 or more")
