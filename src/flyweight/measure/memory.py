"""What does a model cost in memory and on disk?

    serving MB = resident memory of a Python that loaded the model and answered once
               - resident memory of a Python that only imported the same modules

MB is 10^6 bytes. Pages of a memory-mapped file count as far as they were touched; workers that map the same file share
them. Two runs differ by a few hundred kB, since every fresh interpreter is laid out anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from flyweight.errors import ConfigError, FlyweightError

MB = 1e6
_PROCESS_STATUS = Path("/proc/self/status")
_MARK = "flyweight-memory "  # the report's line in the child's output, whatever else it prints

# Runs after the measured code. What it imports itself is in both children, so it is in no difference.
_REPORT = f"""
from flyweight.measure import memory as _memory
_resident, _peak = _memory.own_memory_bytes()
import json as _json, sys as _sys
print()
print({_MARK!r} + _json.dumps([_resident, _peak, [m for m in _sys.modules if m != "__main__"]]))
"""

_LOAD_AND_ANSWER = """
import flyweight
_model = flyweight.load({path!r})
_model.parse("hello")
"""

_IMPORT_ONLY = """
import importlib, sys
for _name in sys.stdin.read().split():
    try:
        importlib.import_module(_name)
    except Exception:
        pass
"""


@dataclass(frozen=True)
class Memory:
    """Memory of a serving process. `resident_mb` is what the model adds; `peak_mb` what it adds at the worst moment.

    process_mb, process_peak_mb: the whole child that loaded and answered; imports_mb, imports_peak_mb: the child that
    only imported. Elsewhere than on Linux only peaks are known, and stand for the resident figures too.
    """

    resident_mb: float
    peak_mb: float
    process_mb: float
    process_peak_mb: float
    imports_mb: float
    imports_peak_mb: float

    def to_dict(self) -> dict[str, float]:
        """The fields as plain floats."""
        return asdict(self)


@dataclass(frozen=True)
class ChildMemory:
    """Resident and peak bytes of a child that ran some code, and the modules it had loaded at the end, in order."""

    resident_bytes: int
    peak_bytes: int
    modules: tuple[str, ...]


def serving_memory(fly_path: str | Path) -> Memory:
    """Memory that serving a .fly file takes, beyond the imports it needs anyway.

    Two fresh children of this Python: one does `flyweight.load(path).parse("hello")`; the other imports exactly the
    modules which the first one had loaded, in the same order. Errors: FlyweightError with the child's last line.
    """
    return beyond_imports(_LOAD_AND_ANSWER.format(path=os.path.abspath(fly_path)))


def disk_bytes(path: str | Path) -> int:
    """Bytes of a file, or of all files below a folder (a link counts as what it points to)."""
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        raise ConfigError(f"{path} does not exist; give a file or a folder")
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def peak_rss_mb() -> float:
    """The most resident memory this process has had so far, in MB."""
    return own_memory_bytes()[1] / MB


def own_memory_bytes() -> tuple[int, int]:
    """Resident and peak bytes of this process.

    Linux: VmRSS and VmHWM of /proc/self/status. (Not ru_maxrss: a fresh child starts with the peak of the process that
    started it.) Elsewhere: ru_maxrss of getrusage for both.
    """
    try:
        return parse_status(_PROCESS_STATUS.read_text())
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        raise FlyweightError("memory can be measured on Linux, macOS and BSD only; leave it out here") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def parse_status(text: str) -> tuple[int, int]:
    """(VmRSS, VmHWM) in bytes from the text of /proc/<pid>/status, which gives kB of 1024; no VmHWM: VmRSS twice."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    resident = int(fields["VmRSS"].split()[0]) * 1024
    peak = int(fields["VmHWM"].split()[0]) * 1024 if "VmHWM" in fields else resident
    return resident, peak


def beyond_imports(code: str) -> Memory:
    """Memory of a child that runs `code`, less that of a child that only imports what the first had loaded."""
    process = _child_rss(code)
    imports = _child_rss(_IMPORT_ONLY, "\n".join(process.modules))
    return Memory(
        resident_mb=(process.resident_bytes - imports.resident_bytes) / MB,
        peak_mb=(process.peak_bytes - imports.peak_bytes) / MB,
        process_mb=process.resident_bytes / MB,
        process_peak_mb=process.peak_bytes / MB,
        imports_mb=imports.resident_bytes / MB,
        imports_peak_mb=imports.peak_bytes / MB,
    )


def _child_rss(code: str, stdin: str = "") -> ChildMemory:
    """Run `code` in a fresh child of this Python and report its memory at the end."""
    here = str(Path(__file__).resolve().parents[2])  # the folder that holds the package, installed or a checkout
    path = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, "-c", code + _REPORT],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": path},
    )
    reports = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not reports:
        said = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise FlyweightError(f"measuring memory failed: the child process ended with {done.returncode}: {said}")
    resident, peak, modules = json.loads(reports[-1].removeprefix(_MARK))
    return ChildMemory(resident, peak, tuple(modules))
