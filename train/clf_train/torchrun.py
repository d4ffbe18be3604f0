"""What torchrun passes to each process through its environment. Imports nothing heavy, so that the CLI can use it.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html ("Environment Variables"). A process that torchrun did not
start is the only one.
"""

from __future__ import annotations

import os


def get_rank() -> int:
    """Return the number of this process among all of them."""
    return _read("RANK", 0)


def get_world_size() -> int:
    """Return the number of processes that train together."""
    return _read("WORLD_SIZE", 1)


def get_local_rank() -> int:
    """Return the number of this process among those of this machine."""
    return _read("LOCAL_RANK", 0)


def get_local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _read("LOCAL_WORLD_SIZE", 1)


def get_restart_count() -> int:
    """Return how often torchrun restarted the processes after it had lost one."""
    return _read("TORCHELASTIC_RESTART_COUNT", 0)


def is_main_process() -> bool:
    """Return whether this process writes files and prints: rank 0."""
    return get_rank() == 0


def _read(name: str, default: int) -> int:
    return int(os.environ.get(name, default))
