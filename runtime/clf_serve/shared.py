"""What the processes of one service share: their states, heartbeats and metrics, in memory without a file.

Each place has one writer at a time, so there are no locks that a killed process could leave behind.
"""

from __future__ import annotations

import mmap
import struct
from zlib import crc32

# States of a place.
ABSENT, STARTING, READY = range(3)

# All label values are bounded, so are the metrics: about 20 kB if every endpoint answers with every status.
_SNAPSHOT_BYTES = 131_072
_HEAD = struct.Struct("=II")  # length and checksum of a snapshot
_RESTARTS, _FIRST_PLACE = 0, 1
_STATE, _BEAT, _CONNECTIONS, _ACTIVE, _NUMBERS = range(5)


class SharedState:
    """A place per process, in memory that is shared across forks.

    Attributes:
        places: How many there are: the number of processes that are wanted.
    """

    def __init__(self, places: int) -> None:
        """Create it; no process is there yet."""
        self.places = places
        numbers_bytes = 8 * (_FIRST_PLACE + _NUMBERS * places)
        self._memory = memoryview(mmap.mmap(-1, numbers_bytes + 2 * places * _SNAPSHOT_BYTES))
        self._numbers = self._memory[:numbers_bytes].cast("Q")
        self._snapshots = self._memory[numbers_bytes:]

    @property
    def restarts(self) -> int:
        """How many processes were replaced."""
        return self._numbers[_RESTARTS]

    def count_restart(self) -> None:
        """Count a process that was replaced."""
        self._numbers[_RESTARTS] += 1

    def state(self, place: int) -> int:
        """Return the state of a process."""
        return self._numbers[_index(place, _STATE)]

    def set_state(self, place: int, state: int) -> None:
        """Set the state of a process."""
        self._numbers[_index(place, _STATE)] = state

    @property
    def ready(self) -> int:
        """How many processes answer requests."""
        return sum(self.state(place) == READY for place in range(self.places))

    def beats(self, place: int) -> int:
        """Return how often a process has said that it works."""
        return self._numbers[_index(place, _BEAT)]

    def beat(self, place: int) -> None:
        """Say that a process works."""
        self._numbers[_index(place, _BEAT)] += 1

    def connections(self, place: int) -> int:
        """Return how many connections a process had when it last accepted one."""
        return self._numbers[_index(place, _CONNECTIONS)]

    def set_connections(self, place: int, count: int) -> None:
        """Set how many connections a process has."""
        self._numbers[_index(place, _CONNECTIONS)] = count

    def publish(self, place: int, snapshot: bytes) -> None:
        """Replace the snapshot of a process. If it is killed meanwhile, the one before stays."""
        if len(snapshot) > _SNAPSHOT_BYTES - _HEAD.size:
            raise ValueError(f"a snapshot of {len(snapshot)} bytes")
        half = 1 - self._numbers[_index(place, _ACTIVE)]
        content = _HEAD.pack(len(snapshot), crc32(snapshot)) + snapshot
        start = (2 * place + half) * _SNAPSHOT_BYTES
        self._snapshots[start : start + len(content)] = content
        self._numbers[_index(place, _ACTIVE)] = half

    def snapshot(self, place: int) -> bytes:
        """Return the latest snapshot of a process, also if it has ended; empty if there was none."""
        while True:
            start = (2 * place + self._numbers[_index(place, _ACTIVE)]) * _SNAPSHOT_BYTES
            length, checksum = _HEAD.unpack_from(self._snapshots, start)
            start += _HEAD.size
            snapshot = bytes(self._snapshots[start : start + length])
            if crc32(snapshot) == checksum:  # it was not replaced twice meanwhile
                return snapshot


def _index(place: int, number: int) -> int:
    return _FIRST_PLACE + _NUMBERS * place + number
