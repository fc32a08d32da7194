"""Memory of fresh children against NumPy arrays of known size, and bytes on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flyweight.errors import ConfigError, FlyweightError
from flyweight.measure import memory

# Two fresh interpreters differ by some hundred kB (address layout, allocator); 4 MB is far above, 50 MB far below.
SLACK_MB = 4.0
LINUX = memory._PROCESS_STATUS.exists()


def test_what_a_child_holds_beyond_its_imports() -> None:
    code = """
import numpy
passing = numpy.ones(100_000_000, dtype=numpy.int8)
del passing
kept = numpy.ones(50_000_000, dtype=numpy.int8)
print("a library that talks on stdout")
"""
    found = memory.beyond_imports(code)
    assert found.peak_mb == pytest.approx(100.0, abs=SLACK_MB)
    if LINUX:
        assert found.resident_mb == pytest.approx(50.0, abs=SLACK_MB)
    assert found.process_mb - found.imports_mb == pytest.approx(found.resident_mb)
    assert found.process_peak_mb - found.imports_peak_mb == pytest.approx(found.peak_mb)
    assert json.loads(json.dumps(found.to_dict()))["resident_mb"] == found.resident_mb


def test_imports_alone_cost_nothing() -> None:
    found = memory.beyond_imports("import numpy.random, decimal, email.message")
    assert abs(found.resident_mb) < SLACK_MB


def test_the_second_child_imports_what_the_first_had_loaded() -> None:
    first = memory._child_rss("import numpy, decimal")
    second = memory._child_rss(memory._IMPORT_ONLY, "\n".join([*first.modules, "no.such.module"]))
    assert {"numpy", "decimal"} <= set(first.modules) <= set(second.modules)
    assert "__main__" not in first.modules


@pytest.mark.skipif(not LINUX, reason="only Linux tells a child's own peak")
def test_a_childs_peak_is_not_its_parents() -> None:
    ballast = bytearray(150_000_000)  # this process is now bigger than the child will ever be
    assert memory.own_memory_bytes()[0] > 150_000_000
    assert memory._child_rss("").peak_bytes < 100_000_000
    assert len(ballast) == 150_000_000


def test_a_failing_child_is_reported_by_its_last_line() -> None:
    with pytest.raises(FlyweightError, match=r"the child process ended with 1: ValueError: no such model"):
        memory._child_rss("raise ValueError('no such model')")
    with pytest.raises(FlyweightError, match=r"ended with 3: nothing on stderr"):
        memory._child_rss("import sys; sys.exit(3)")


def test_serving_memory_loads_the_file_and_asks_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []

    def child(code: str, stdin: str = "") -> memory.ChildMemory:
        ran.append(code)
        return memory.ChildMemory(90_000_000, 120_000_000, ("numpy",)) if len(ran) == 1 else (
            memory.ChildMemory(30_000_000, 31_000_000, ("numpy",))
        )  # fmt: skip

    monkeypatch.setattr(memory, "_child_rss", child)
    path = tmp_path / "it's a \\ bot.fly"
    found = memory.serving_memory(path)
    assert f"flyweight.load({str(path)!r})" in ran[0]
    assert '.parse("hello")' in ran[0]
    compile(ran[0], "child", "exec")
    assert ran[1] == memory._IMPORT_ONLY
    assert (found.resident_mb, found.peak_mb) == pytest.approx((60.0, 89.0))
    assert (found.process_mb, found.imports_mb) == pytest.approx((90.0, 30.0))


def test_status_by_hand() -> None:
    text = "Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nThreads:\t1\n"
    assert memory.parse_status(text) == (204_800, 307_200)
    assert memory.parse_status("VmRSS:\t 10 kB\n") == (10_240, 10_240)


def test_own_memory_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    monkeypatch.setattr(memory, "_PROCESS_STATUS", tmp_path / "missing")
    resident, peak = memory.own_memory_bytes()
    assert resident == peak > 1_000_000


def test_peak_of_this_process() -> None:
    resident, _ = memory.own_memory_bytes()
    assert memory.peak_rss_mb() >= resident / 1e6 - SLACK_MB


def test_disk_bytes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.bin").write_bytes(b"12345")
    (tmp_path / "sub" / "b.bin").write_bytes(b"1234567")
    (tmp_path / "sub" / "empty").touch()
    assert memory.disk_bytes(tmp_path / "a.bin") == 5
    assert memory.disk_bytes(str(tmp_path)) == 12
    with pytest.raises(ConfigError, match="does not exist; give a file or a folder"):
        memory.disk_bytes(tmp_path / "missing")
