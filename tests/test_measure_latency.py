"""Order, counts and arithmetic of timing, on a clock that the fake callables move. No test reads the real time."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from flyweight.errors import ConfigError
from flyweight.measure import latency
from flyweight.measure.latency import compare, ratio, single_thread, summarise, throughput, turn

TEXTS = [f"message {i}" for i in range(10)]


class Clock:
    """Nanoseconds that pass only while a fake callable runs; `calls` remembers who was asked what."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[tuple[str, str]] = []

    def takes(self, name: str, *costs_ns: int) -> Callable[[str], None]:
        n_done = 0

        def call(text: str) -> None:
            nonlocal n_done
            self.calls.append((name, text))
            self.now += costs_ns[n_done % len(costs_ns)]
            n_done += 1

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "perf_counter_ns", lambda: clock.now)
    return clock


def test_every_call_is_timed_and_warm_up_is_not(clock: Clock) -> None:
    # the first two calls of each are warm-up: their 9 s are in no figure
    callables = {"parent": clock.takes("parent", 9 * 10**9, 9 * 10**9, 4_000_000, 8_000_000, 6_000_000),
                 "child": clock.takes("child", 9 * 10**9, 9 * 10**9, 1_000_000, 4_000_000, 1_000_000)}  # fmt: skip
    told: list[tuple[int, int]] = []
    found = compare(callables, TEXTS, n_calls=3, n_warmup=2, progress=lambda i, n: told.append((i, n)))
    parent, child = found["parent"], found["child"]
    assert parent.calls_ms == (4.0, 8.0, 6.0)
    assert (parent.n_calls, parent.mean_ms, parent.p50_ms, parent.best_ms) == (3, 6.0, 6.0, 4.0)
    assert child.calls_ms == (1.0, 4.0, 1.0)
    speedup = ratio(parent, child)
    assert speedup.of_means == pytest.approx(18 / 6)
    assert speedup.median_per_call == pytest.approx(4.0)  # of 4/1, 8/4, 6/1
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_all_get_the_same_messages_in_one_shuffled_order(clock: Clock) -> None:
    callables = {name: clock.takes(name, 1) for name in "abc"}
    compare(callables, TEXTS, n_calls=25, n_warmup=0, seed=7)
    asked = {name: [text for who, text in clock.calls if who == name] for name in "abc"}
    assert asked["a"] == asked["b"] == asked["c"]
    assert sorted(asked["a"][:10]) == TEXTS
    assert asked["a"][:10] != TEXTS
    assert asked["a"][10:20] == asked["a"][:10]  # more calls than messages: again from the start
    first = clock.calls.copy()
    clock.calls.clear()
    compare(callables, TEXTS, n_calls=25, n_warmup=0, seed=7)
    assert clock.calls == first


def test_warm_up_takes_messages_from_the_end(clock: Clock) -> None:
    compare({"a": clock.takes("a", 1)}, TEXTS, n_calls=5, n_warmup=5)
    asked = [text for _, text in clock.calls]
    assert len(asked) == 10
    assert not set(asked[:5]) & set(asked[5:])


def test_calls_are_interleaved(clock: Clock) -> None:
    compare({name: clock.takes(name, 1) for name in "abc"}, TEXTS, n_calls=6, n_warmup=0)
    rounds = ["".join(name for name, _ in clock.calls[i : i + 3]) for i in range(0, 18, 3)]
    assert rounds == ["abc", "cba", "bca", "acb", "cab", "bac"]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_turns_are_fair(n: int) -> None:
    names = list("abcde"[:n])
    rounds = [turn(names, i) for i in range(2 * n)]
    assert all(sorted(r) == names for r in rounds)
    places = Counter((name, place) for r in rounds for place, name in enumerate(r))
    assert set(places.values()) == {2}
    flat = [name for r in rounds + rounds[:1] for name in r]
    before = {name: {a for a, b in pairwise(flat) if b == name} for name in names}
    assert all(len(predecessors) >= min(n, 2) for predecessors in before.values())


def test_percentiles_by_hand() -> None:
    found = summarise([i * 1_000_000 for i in range(1, 102)])  # 1 to 101 ms
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == pytest.approx((51.0, 96.0, 100.0))
    assert (found.mean_ms, found.best_ms, found.n_calls) == pytest.approx((51.0, 1.0, 101))
    assert found.to_dict() == {"p50_ms": 51.0, "p95_ms": 96.0, "p99_ms": 100.0, "mean_ms": 51.0, "best_ms": 1.0,
                               "n_calls": 101}  # fmt: skip
    assert "calls_ms" not in repr(found)


def test_a_call_below_the_clocks_step_leaves_ratios_finite() -> None:
    speedup = ratio(summarise([100, 100]), summarise([0, 0]))
    assert (speedup.of_means, speedup.median_per_call) == pytest.approx((100.0, 100.0))


def test_ratio_refuses_different_runs() -> None:
    with pytest.raises(ConfigError, match="parent was timed on 2 calls, child on 1; time both in one compare"):
        ratio(summarise([1, 2]), summarise([1]))


@pytest.mark.parametrize(
    ("callables", "texts", "settings", "message"),
    [
        ({}, TEXTS, {}, "nothing to time"),
        ({"a": len}, [], {}, "no texts to time"),
        ({"a": len}, TEXTS, {"n_calls": 0}, "n_calls=0"),
        ({"a": len}, TEXTS, {"n_warmup": -1}, "n_warmup=-1"),
    ],
)
def test_compare_says_what_is_wrong(callables: dict, texts: list[str], settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(callables, texts, **settings)


def test_throughput_counts_all_batches_but_the_first_untimed_one(clock: Clock) -> None:
    sizes: list[int] = []

    def batch(texts: list[str]) -> None:
        sizes.append(len(texts))
        clock.now += 500_000_000

    assert throughput(batch, TEXTS, batch_size=4) == pytest.approx(10 / 1.5)  # three timed batches of half a second
    assert sizes == [4, 4, 4, 2]
    with pytest.raises(ConfigError, match="10 texts in batches of 0"):
        throughput(batch, TEXTS, batch_size=0)


class FakeTorch:
    def __init__(self) -> None:
        self.n_threads = 6

    def get_num_threads(self) -> int:
        return self.n_threads

    def set_num_threads(self, n: int) -> None:
        self.n_threads = n


def test_single_thread_limits_what_is_loaded_and_sets_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    with single_thread():
        assert torch.n_threads == 1
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert torch.n_threads == 6
    assert "TOKENIZERS_PARALLELISM" not in os.environ

    def fails() -> None:
        with single_thread():
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert torch.n_threads == 6


def test_single_thread_holds_blas_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    np.ones((2, 2)) @ np.ones((2, 2))
    before = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
    with single_thread():
        assert all(pool["num_threads"] == 1 for pool in threadpoolctl.threadpool_info())
        assert "torch" not in sys.modules
    assert [pool["num_threads"] for pool in threadpoolctl.threadpool_info()] == before


def test_single_thread_works_without_threadpoolctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with single_thread():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
