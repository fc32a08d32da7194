"""The build: importable without the native module, and on a CPU that is older than every kernel but the plainest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_NATIVE = "import sys; sys.modules['flyweight._native'] = None\n"  # None: importing it raises ImportError
ARCHITECTURE_FLAGS = ("-mavx", "-mfma", "-mamx", "-msse", "-march", "/arch")


def python(code: str, *before: str) -> str:
    """What `code` prints in a fresh interpreter, started through the command `before`."""
    done = subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return done.stdout


def commands() -> list[dict[str, str]]:
    """How each object of the extension was compiled: directory, command, file."""
    found = sorted((ROOT / "build" / "editable").glob("*/compile_commands.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        pytest.skip("build/editable holds no native build: run make native")
    entries = json.loads(found[-1].read_text(encoding="utf-8"))
    return [entry for entry in entries if Path(entry["file"]).exists()]


def level_objects() -> list[Path]:
    """Objects that were compiled for more than the baseline."""
    found = []
    for entry in commands():
        flags = entry["command"].split()
        if any(flag.startswith(ARCHITECTURE_FLAGS) for flag in flags):
            found.append(Path(entry["directory"]) / flags[flags.index("-o") + 1])
    return found


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: qemu-user, binutils)")
    return path


def test_import_without_the_native_module() -> None:
    code = WITHOUT_NATIVE + "import flyweight as fw; print([f.__name__ for f in (fw.load, fw.Parser, fw.save)])"
    assert python(code) == "['load', 'Parser', 'save']\n"


def test_with_a_compiler_the_native_module_is_there() -> None:
    """`pip install` without FLYWEIGHT_REQUIRE_NATIVE forgives C++ that does not compile; the tests do not."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("no C++ compiler here, so no flyweight._native")
    assert "scalar" in python("import flyweight._native as n; print(n.levels())")


def test_no_object_fuses_products_and_sums() -> None:
    for entry in commands():
        assert "-ffp-contract=off" in entry["command"] or "/fp:precise" in entry["command"], entry["file"]


def test_only_kernels_are_compiled_for_more_than_the_baseline() -> None:
    kernels = {f"{path.name}.o" for path in (ROOT / "native" / "kernels").glob("*.cc")} - {"scalar.cc.o"}
    found = [path.name for path in level_objects()]
    assert set(found) <= kernels
    built = python("import flyweight._native as n; print(*n.built())").split()
    assert len(found) == len(set(built) - {"scalar"})


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects")
def test_a_kernel_object_shares_no_code_and_runs_none_at_import() -> None:
    """A shared inline function could be taken from it by the linker; a static initializer runs before any dispatch."""
    for path in level_objects():
        if not path.exists():
            pytest.skip(f"{path.name} is not built: run make native")
        symbols = subprocess.run([tool("nm"), "-C", str(path)], capture_output=True, text=True, check=True).stdout
        assert [line for line in symbols.splitlines() if line[17:18] in "WVu" and line[:1].strip()] == [], path
        sections = subprocess.run([tool("readelf"), "-SW", str(path)], capture_output=True, text=True, check=True)
        assert ".init_array" not in sections.stdout, path


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="qemu-x86_64 runs Linux x86-64")
def test_import_on_a_cpu_without_avx() -> None:
    """Nehalem, 2008: SSE4.2 is its best."""
    qemu = tool("qemu-x86_64")
    commands()
    assert python("import flyweight._native as n; print(n.levels())", qemu, "-cpu", "Nehalem") == "['scalar']\n"
