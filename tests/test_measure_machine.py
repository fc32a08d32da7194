"""Facts about the machine, from made-up /proc and cgroup files, and once from this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flyweight.measure import machine as m

X86 = """processor\t: 0
model name\t: Imaginary Xeon 9000
flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_int8 avx_vnni

processor\t: 1
model name\t: Imaginary Xeon 9000
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp bf16 i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


def test_isa_levels() -> None:
    assert m.isa_levels(X86) == ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]
    assert m.isa_levels(ARM) == ["neon_dotprod"]
    assert m.isa_levels("") == []
    assert m.isa_levels("flags : avx2x avx512f_not") == []  # whole words only


def test_cpu_model() -> None:
    assert m.cpu_model(X86) == "Imaginary Xeon 9000"
    assert m.cpu_model(ARM) == "ARM implementer 0x41 part 0xd40"
    assert m.cpu_model("")


@pytest.mark.parametrize(
    ("flags", "native"), [("avx2 avx512f", False), ("avx512_bf16", True), ("amx_bf16", True), ("asimd bf16", True)]
)
def test_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, native: bool) -> None:
    monkeypatch.setattr(m, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    assert m.multiplies_bf16_natively() is native
    monkeypatch.setattr(m, "_CPUINFO", tmp_path / "missing")
    assert m.multiplies_bf16_natively() is False


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_version_2(tmp_path: Path) -> None:
    write(tmp_path / "pod" / "box" / "cpu.max", "max 100000\n")
    assert m.cpu_quota_cores(tmp_path, "0::/pod/box\n") is None
    write(tmp_path / "pod" / "cpu.max", "150000 100000\n")  # a limit further up holds too
    assert m.cpu_quota_cores(tmp_path, "0::/pod/box\n") == 1.5
    write(tmp_path / "pod" / "box" / "cpu.max", "50000 100000\n")
    assert m.cpu_quota_cores(tmp_path, "0::/pod/box\n") == 0.5
    assert m.cpu_quota_cores(tmp_path, "0::/elsewhere/../\n") is None
    write(tmp_path / "cpu.max", "200000 100000\n")  # in a container the own path is often not mounted: the root is
    assert m.cpu_quota_cores(tmp_path, "0::/not/mounted\n") == 2.0


def test_quota_version_1(tmp_path: Path) -> None:
    lines = "5:memory:/pod\n4:cpu,cpuacct:/pod\n0::/\n"
    write(tmp_path / "cpu,cpuacct" / "pod" / "cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "cpu,cpuacct" / "pod" / "cpu.cfs_period_us", "100000\n")
    assert m.cpu_quota_cores(tmp_path, lines) is None
    write(tmp_path / "cpu,cpuacct" / "pod" / "cpu.cfs_quota_us", "300000\n")
    assert m.cpu_quota_cores(tmp_path, lines) == 3.0
    assert m.cpu_quota_cores(tmp_path, "") is None
    assert m.cpu_quota_cores(tmp_path, "no cgroup line\n") is None


@pytest.mark.parametrize(("visible", "quota", "usable"), [(8, None, 8), (8, 2.5, 2), (8, 0.5, 1), (2, 4.0, 2)])
def test_usable_cores(monkeypatch: pytest.MonkeyPatch, visible: int, quota: float | None, usable: int) -> None:
    monkeypatch.setattr(m, "visible_cores", lambda: visible)
    monkeypatch.setattr(m, "cpu_quota_cores", lambda root, membership: quota)
    facts = m.machine()
    assert (facts["n_cores_visible"], facts["cpu_quota_cores"], facts["n_cores_usable"]) == (visible, quota, usable)


MEMINFO = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    600 kB\n"


@pytest.mark.parametrize(
    ("files", "membership", "free"),
    [
        ({}, "", 600 * 1024),
        ({"memory.max": "max", "memory.current": "5"}, "0::/", 600 * 1024),
        ({"memory.max": "5000", "memory.current": "3000"}, "0::/", 2000),
        # file pages that nobody used lately are given back
        ({"memory.max": "5000", "memory.current": "3000", "memory.stat": "anon 1\ninactive_file 700\n"}, "0::/", 2700),
        ({"pod/memory.max": "900", "pod/memory.current": "950", "memory.max": "5000"}, "0::/pod/box", 0),
        ({"memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "10"}, "3:memory:/", 4990),
        ({"memory/memory.limit_in_bytes": str(2**63), "memory/memory.usage_in_bytes": "1"}, "3:memory:/", 600 * 1024),
    ],
)
def test_free_memory(
    files: dict[str, str], membership: str, free: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in (files | {"meminfo": MEMINFO, "membership": membership}).items():
        write(tmp_path / name, text)
    monkeypatch.setattr(m, "_CGROUPS", tmp_path)
    monkeypatch.setattr(m, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(m, "_MEMBERSHIP", tmp_path / "membership")
    assert m.memory_free_bytes() == free


def test_free_memory_is_unknown_without_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_CGROUPS", "_MEMINFO", "_MEMBERSHIP"):
        monkeypatch.setattr(m, name, tmp_path / "none")
    assert m.memory_free_bytes() is None


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "src" / "flyweight"
    write(package / "a.py", "1\n")
    write(tmp_path / "venv" / "flyweight" / "a.py", "1\n")
    assert m.commit(package) is None  # no repository
    try:
        git(tmp_path, "init", "-q")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git does not work here")
    assert m.commit(package) is None  # no commit
    git(tmp_path, "add", "src")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is not the answer")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert m.commit(package) == head
    write(package / "a.py", "2\n")
    assert m.commit(package) == f"{head}-dirty"
    assert m.commit(tmp_path / "venv" / "flyweight") is None  # installed inside some other repository


def test_commit_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert m.commit(tmp_path) is None


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "PACKAGES", ("numpy", "surely-not-installed-package"))
    assert list(m.versions()) == ["numpy"]


def test_this_machine_without_importing_torch() -> None:
    code = (
        "import sys, json; from flyweight.measure.machine import machine; "
        "print(json.dumps([machine(), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts, torch_loaded = json.loads(done.stdout)
    assert (torch_loaded, done.stderr) == (False, "")
    assert facts["cpu"]
    assert facts["n_cores_visible"] >= facts["n_cores_usable"] >= 1
    assert "numpy" in facts["versions"]
    assert facts["engine"]["engine"] in ("engine", "numpy")
    assert (facts["engine"]["level"] is None) == (facts["engine"]["engine"] == "numpy")
    assert set(facts["isa"]) <= set(m.ISA_FLAGS)
