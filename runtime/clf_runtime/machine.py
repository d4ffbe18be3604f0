"""What this process may use of the machine: a container's share, not the host's cores."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores that the affinity mask and the cgroup quota leave to this process, at least 1.

    A fraction is rounded down: a pool that is throttled stalls all of its threads.
    """
    return max(1, int(min(_affinity(), _quota(proc, cgroups))))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(proc: Path, cgroups: Path) -> float:
    """Cores' worth of processor time, from cgroup v2 `cpu.max` or v1 `cpu.cfs_quota_us`, parents included."""
    quota = float("inf")
    for folder in _cgroup_folders(proc, cgroups):
        for limit, period in (
            (_read(folder / "cpu.max")[:1], _read(folder / "cpu.max")[1:]),
            (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")),
        ):
            if limit and period and limit[0].isdigit() and period[0].isdigit() and int(period[0]) > 0:
                quota = min(quota, int(limit[0]) / int(period[0]))
    return quota


def _cgroup_folders(proc: Path, cgroups: Path) -> list[Path]:
    folders = []
    for line in "\n".join(_read(proc / "self" / "cgroup", by_line=True)).splitlines():
        _, controllers, path = line.split(":", 2)
        root = cgroups if not controllers else cgroups / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = root / path.lstrip("/")
        # Inside a container the path may be the host's; what is visible then starts at the root.
        folders += [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return folders


def _read(path: Path, by_line: bool = False) -> list[str]:
    try:
        text = path.read_text()
    except OSError:
        return []
    return text.splitlines() if by_line else text.split()
