"""How many cores this process may really use: its affinity, and the limit of its container. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Whole cores after affinity and container limit, at least 1."""
    return whole_cores(visible_cores(), cpu_quota_cores(CGROUPS, read_text(MEMBERSHIP)))


def whole_cores(n_visible: int, quota: float | None) -> int:
    """min(n_visible, quota) in whole cores, at least 1."""
    return max(1, int(n_visible if quota is None else min(n_visible, quota)))


def visible_cores() -> int:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota_cores(root: Path, membership: str) -> float | None:
    """The container's CPU limit in cores, quota / period; the least one on the way up to the root; None without.

    `root` is where cgroups are mounted, `membership` the text of /proc/self/cgroup (lines `id:controllers:path`).
    Version 2: cpu.max holds "quota period" or "max period". Version 1: cpu.cfs_quota_us (-1: none), cpu.cfs_period_us.
    """
    known = [limit for folder in cgroups(root, membership, "cpu") if (limit := _quota(folder)) is not None]
    return min(known) if known else None


def cgroups(root: Path, membership: str, controller: str) -> Iterator[Path]:
    """Folders that may limit this process, from its own up to the root, for each mounted hierarchy."""
    for line in membership.splitlines():
        _, controllers, below = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (root / controllers, root / controller) if controllers else (root, root / "unified"):
            parts = [part for part in below.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth])


def _quota(folder: Path) -> float | None:
    quota, _, period = read_text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = read_text(folder / "cpu.cfs_quota_us").strip(), read_text(folder / "cpu.cfs_period_us").strip()
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or no such files
        return None


def read_text(path: Path) -> str:
    """The text of a file; nothing where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
