"""benchmarks/fuzz.py on a few hundred inputs, and that it would see a fault."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flyweight.runtime.parser import BUNDLED_FILE

N_INPUTS = 400


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """The script, which lies outside the package."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutated_files_are_answered_from_or_refused(fuzz: ModuleType, tmp_path: Path) -> None:
    found = fuzz.run(N_INPUTS, fuzz.corpus(tmp_path, None), tmp_path, show=False)
    assert found["faults"] == []
    assert {what: found[what] for what in ("crash", "hang", "escape", "silent")} == dict.fromkeys(
        ("crash", "hang", "escape", "silent"), 0
    )
    assert found["inputs"] == found["refused"] + found["fine"] == N_INPUTS
    assert found["refused"] > N_INPUTS / 2
    assert found["distinct_messages"] > 30
    assert len(found["mutations"]) == len(fuzz.BREAKING + fuzz.FORGING)


def test_the_same_seed_makes_the_same_input(fuzz: ModuleType, tmp_path: Path) -> None:
    originals = [fuzz.Original(BUNDLED_FILE)]
    written = []
    for _ in range(2):
        fuzz.one(7, originals, tmp_path / "x.fly")
        written.append((tmp_path / "x.fly").read_bytes())
    assert written[0] == written[1] != originals[0].data


def escaping(*_: Any, **__: Any) -> None:
    raise KeyError("not ours")


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ({"verify": escaping}, "escape"),
        ({"verify": lambda path: None, "answer": lambda path, **_: ["another answer"]}, "silent"),
    ],
)
def test_faults_are_seen(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: dict[str, Any], outcome: str
) -> None:
    for name, value in what.items():
        monkeypatch.setattr(fuzz, name, value)
    originals = [fuzz.Original(BUNDLED_FILE)]
    found = {fuzz.one(i, originals, tmp_path / "x.fly")[:2] for i in range(30)}
    assert outcome in {kind for _, kind in found}


@pytest.mark.parametrize(
    ("end", "what"),
    [
        ("os.kill(os.getpid(), 9)", "crash"),
        ("sys.stdout.write('[3'); sys.stdout.flush(); os._exit(1)", "crash"),
        ("faulthandler.dump_traceback_later(0.1, exit=True); time.sleep(60)", "hang"),
    ],
)
def test_a_dead_child_is_counted_and_the_rest_goes_on(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, what: str
) -> None:
    # A child that answers its first input and then ends, every time.
    script = tmp_path / "child.py"
    script.write_text(
        "import faulthandler, json, os, sys, time\n"
        "print(json.dumps([int(sys.argv[2]), 'flip_bits', 'fine', '']), flush=True)\n"
        f"{end}\n"
    )
    monkeypatch.setattr(fuzz, "__file__", str(script))
    found = fuzz.run(4, [], tmp_path, show=False)
    assert (found[what], found["fine"], found["inputs"]) == (2, 2, 4)
    assert len(found["faults"]) == 2


def test_a_panic_is_an_escape(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panics(*_: Any, **__: Any) -> None:
        raise PanicException("no entry")

    monkeypatch.setattr(fuzz, "verify", panics)
    assert fuzz.one(3, [fuzz.Original(BUNDLED_FILE)], tmp_path / "x.fly")[1:] == ("escape", "PanicException: no entry")
