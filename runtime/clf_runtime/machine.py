"""The cores and the memory that this process may use: those of its container, not of the host."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that the affinity mask and the cgroup quota allow, at least 1.

    A fraction is rounded down, because throttling a pool stalls all of its threads.
    """
    return max(1, int(min(core_limits(proc, cgroups))))


def core_limits(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, float]:
    """Return the cores of the affinity mask and of the cgroup quota, which is infinity if there is none."""
    return _affinity(), _quota(proc, cgroups)


def usable_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process can still allocate: what the system has available and its cgroups allow.

    If neither is known (not Linux), it is a quarter of the machine's memory, or 2 GiB.
    """
    available = [_available(proc), *_remaining_in_cgroups(proc, cgroups)]
    known = [size_bytes for size_bytes in available if size_bytes is not None]
    return max(0, min(known)) if known else _quarter_of_total()


def _available(proc: Path) -> int | None:
    for line in _read(proc / "meminfo", by_line=True):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _remaining_in_cgroups(proc: Path, cgroups: Path) -> list[int]:
    """Return what remains of each limit: cgroup v2 `memory.max`, v1 `memory.limit_in_bytes`, with all parents."""
    remaining = []
    for folder in _cgroup_folders(proc, cgroups, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            maximum, used = _read(folder / limit), _read(folder / usage)
            if maximum and used and maximum[0].isdigit() and used[0].isdigit():
                remaining.append(int(maximum[0]) - int(used[0]))
    return remaining


def _quarter_of_total() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):
        return 2**31


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(proc: Path, cgroups: Path) -> float:
    """Return the cgroup quota in cores: the smallest of v2 `cpu.max` and v1 `cpu.cfs_quota_us`, with all parents."""
    quota = float("inf")
    for folder in _cgroup_folders(proc, cgroups, "cpu"):
        for limit, period in (
            (_read(folder / "cpu.max")[:1], _read(folder / "cpu.max")[1:]),
            (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")),
        ):
            if limit and period and limit[0].isdigit() and period[0].isdigit() and int(period[0]) > 0:
                quota = min(quota, int(limit[0]) / int(period[0]))
    return quota


def _cgroup_folders(proc: Path, cgroups: Path, controller: str) -> list[Path]:
    folders = []
    for line in "\n".join(_read(proc / "self" / "cgroup", by_line=True)).splitlines():
        _, controllers, path = line.split(":", 2)
        root = cgroups if not controllers else cgroups / controller
        if controllers and controller not in controllers.split(","):
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be that of the host, while the visible hierarchy starts at the root.
        folders += [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return folders


def _read(path: Path, by_line: bool = False) -> list[str]:
    try:
        text = path.read_text()
    except OSError:
        return []
    return text.splitlines() if by_line else text.split()
