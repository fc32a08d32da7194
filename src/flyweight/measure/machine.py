"""On what was it measured? CPU, instruction sets, cores really usable, memory, versions, commit.

Nothing heavy is imported: versions come from the packages' metadata.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flyweight.cores import CGROUPS, MEMBERSHIP, cgroups, cpu_quota_cores, read_text, visible_cores, whole_cores

# (name in results, the flag in /proc/cpuinfo); x86 first, then ARM
ISA_FLAGS = {
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "neon_dotprod": "asimddp",
}
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is ARM's
PACKAGES = ("flyweight", "numpy", "tokenizers", "torch")
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CGROUPS, _MEMBERSHIP = CGROUPS, MEMBERSHIP


def machine() -> dict[str, Any]:
    """JSON-able facts for the head of every measurement; what is unknown here is None or left out of a list.

    cpu: model name. isa: present levels out of `ISA_FLAGS`. n_cores_visible: logical cores this process may run on;
    cpu_quota_cores: the container's limit in cores, None without one; n_cores_usable: whole cores after both.
    memory_total_bytes: of the machine. engine: what answers .fly files here, see `runtime.native.facts`. commit: of the
    checkout that holds this package, "-dirty" with local changes.
    versions: of the installed packages out of `PACKAGES`.
    """
    from flyweight.runtime.native import facts

    cpuinfo = read_text(_CPUINFO)
    n_visible = visible_cores()
    quota = cpu_quota_cores(_CGROUPS, read_text(_MEMBERSHIP))
    return {
        "cpu": cpu_model(cpuinfo),
        "arch": platform.machine(),
        "isa": isa_levels(cpuinfo),
        "multiplies_bf16_natively": multiplies_bf16_natively(),
        "n_cores_visible": n_visible,
        "cpu_quota_cores": quota,
        "n_cores_usable": whole_cores(n_visible, quota),
        "memory_total_bytes": memory_total_bytes(),
        "engine": facts(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(Path(__file__).resolve().parents[1]),
    }


def multiplies_bf16_natively() -> bool:
    """True with avx512_bf16, amx_bf16 or ARM bf16. Elsewhere bf16 is emulated, and slower than float32.

    Known from /proc/cpuinfo; False where there is none.
    """
    return bool(cpu_flags(read_text(_CPUINFO)) & BF16_FLAGS)


def cpu_flags(cpuinfo: str) -> set[str]:
    """The flags of the first core in the text of /proc/cpuinfo ("flags" on x86, "Features" on ARM)."""
    return set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())


def isa_levels(cpuinfo: str) -> list[str]:
    """The names out of `ISA_FLAGS` that the text of /proc/cpuinfo shows, in the order of that table."""
    flags = cpu_flags(cpuinfo)
    return [name for name, flag in ISA_FLAGS.items() if flag in flags]


def cpu_model(cpuinfo: str) -> str:
    """Model name; on ARM, where Linux gives none, the implementer and part numbers; else what Python knows."""
    name = _field(cpuinfo, "model name")
    if name:
        return name
    implementer, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    if implementer and part:
        return f"ARM implementer {implementer} part {part}"
    return platform.processor() or platform.machine() or "unknown"


def memory_total_bytes() -> int | None:
    """Physical memory of the machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def memory_free_bytes() -> int | None:
    """What a process may still take: available memory (meminfo), or less where the container has less; None: unknown.

    A container has its limit less what it uses; file pages that were not used lately are given back first, so they do
    not count. Version 2: memory.max, memory.current; version 1: memory.limit_in_bytes, memory.usage_in_bytes.
    """
    available = _field(read_text(_MEMINFO), "MemAvailable")
    known = [] if available is None else [int(available.split()[0]) * 1024]
    for folder in cgroups(_CGROUPS, read_text(_MEMBERSHIP), "memory"):
        limit = read_text(folder / "memory.max").strip() or read_text(folder / "memory.limit_in_bytes").strip()
        used = read_text(folder / "memory.current").strip() or read_text(folder / "memory.usage_in_bytes").strip()
        if limit.isdecimal() and used.isdecimal():
            idle = dict(line.partition(" ")[::2] for line in read_text(folder / "memory.stat").splitlines())
            known.append(max(0, int(limit) - int(used) + int(idle.get("inactive_file", 0))))
    return min(known) if known else None


def versions(packages: Sequence[str] | None = None) -> dict[str, str]:
    """Versions of those of the packages (None: `PACKAGES`) that are installed."""
    found = {}
    for package in PACKAGES if packages is None else packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit(package: Path) -> str | None:
    """Hash of the checkout whose src/ holds the folder `package`, "-dirty" with changes; None outside of one.

    A package installed inside some other project's repository does not report that project's commit.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() / "src" / package.name != package.resolve():
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _field(cpuinfo: str, name: str) -> str | None:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
