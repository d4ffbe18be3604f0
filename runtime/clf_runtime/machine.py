"""What this process may use of the machine: a container's share, not the host's cores."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores that the affinity mask and the cgroup quota leave to this process, at least 1.

    A fraction is rounded down: a pool that is throttled stalls all of its threads.
    """
    return max(1, int(min(shares(proc, cgroups))))


def shares(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, float]:
    """Give the cores of the affinity mask, and those of the cgroup quota: infinitely many where there is none."""
    return _affinity(), _quota(proc, cgroups)


def usable_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the bytes that this process can still take: what the system has to give, and what its cgroups allow.

    Where neither is told (not Linux), a quarter of what the machine has, or 2 GiB.
    """
    available = [_available(proc), *_allowances(proc, cgroups)]
    known = [each for each in available if each is not None]
    return max(0, min(known)) if known else _quarter_of_all()


def _available(proc: Path) -> int | None:
    for line in _read(proc / "meminfo", by_line=True):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _allowances(proc: Path, cgroups: Path) -> list[int]:
    """What is left of each limit, cgroup v2 `memory.max` or v1 `memory.limit_in_bytes`, parents included."""
    left = []
    for folder in _cgroup_folders(proc, cgroups, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = _read(folder / limit), _read(folder / usage)
            if most and used and most[0].isdigit() and used[0].isdigit():
                left.append(int(most[0]) - int(used[0]))
    return left


def _quarter_of_all() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):
        return 2**31


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(proc: Path, cgroups: Path) -> float:
    """Cores' worth of processor time, from cgroup v2 `cpu.max` or v1 `cpu.cfs_quota_us`, parents included."""
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
        # Inside a container the path may be the host's; what is visible then starts at the root.
        folders += [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return folders


def _read(path: Path, by_line: bool = False) -> list[str]:
    try:
        text = path.read_text()
    except OSError:
        return []
    return text.splitlines() if by_line else text.split()
