"""Cores and memory: what this process may use, not what the host has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clf_runtime import machine


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_affinity", lambda: 64)

    def write(listing: str | None, files: dict[str, str]) -> int:
        proc, root = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        root.mkdir()
        if listing is not None:
            (proc / "self" / "cgroup").write_text(listing)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return machine.usable_cores(proc, root)

    return write


def test_without_cgroups_the_affinity_mask_is_the_limit(cgroups):
    assert cgroups(None, {}) == 64


def test_a_quota_of_cgroup_v2_is_the_limit(cgroups):
    assert cgroups("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n"}) == 3


def test_the_smallest_quota_among_the_parents_is_the_limit(cgroups):
    assert cgroups("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}) == 2


def test_a_quota_below_one_core_allows_one_thread(cgroups):
    assert cgroups("0::/\n", {"cpu.max": "50000 100000\n"}) == 1


def test_a_quota_of_cgroup_v1_is_the_limit(cgroups):
    files = {"cpu/docker/x/cpu.cfs_quota_us": "400000\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"}
    assert cgroups("5:cpuset:/\n4:cpu,cpuacct:/docker/x\n", files) == 4


def test_a_negative_quota_of_cgroup_v1_is_no_limit(cgroups):
    assert cgroups("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}) == 64


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity mask")
def test_a_process_bound_to_one_core_uses_one():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from clf_runtime.machine import usable_cores; print(usable_cores())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "1"


def test_without_an_affinity_mask_the_number_of_processors_is_the_limit(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine._affinity() == 3


def memory(tmp_path, listing: str, files: dict[str, str]) -> int:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    for name, text in {"self/cgroup": listing, "meminfo": files.pop("meminfo", "")}.items():
        (proc / name).parent.mkdir(parents=True, exist_ok=True)
        (proc / name).write_text(text)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return machine.usable_memory(proc, root)


MEMINFO = "MemTotal:       24000 kB\nMemFree:  10 kB\nMemAvailable:    8000 kB\n"


def test_usable_memory_is_what_the_system_has_available(tmp_path):
    assert memory(tmp_path, "0::/\n", {"meminfo": MEMINFO}) == 8000 * 1024


@pytest.mark.parametrize(
    ("listing", "files"),
    [
        ("0::/a\n", {"a/memory.max": "5000\n", "a/memory.current": "2000\n"}),
        ("0::/a/b\n", {"a/memory.max": "4000\n", "a/memory.current": "1000\n", "a/b/memory.max": "max\n"}),
        ("7:memory:/x\n", {"memory/x/memory.limit_in_bytes": "3000\n", "memory/x/memory.usage_in_bytes": "0\n"}),
    ],
)
def test_usable_memory_is_what_remains_of_the_cgroup_limit(tmp_path, listing, files):
    assert memory(tmp_path, listing, {"meminfo": MEMINFO, **files}) == 3000


def test_if_nothing_is_reported_usable_memory_is_a_quarter_of_the_total(tmp_path, monkeypatch):
    assert memory(tmp_path, "", {}) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    monkeypatch.delattr(os, "sysconf")
    assert memory(tmp_path, "", {}) == 2**31
