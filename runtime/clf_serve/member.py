"""One of several processes that serve the same model, as it sees itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from clf_serve.shared import READY, SharedState


class Member:
    """The place of this process among the others. Its watcher is the process that forked it."""

    def __init__(self, shared: SharedState, place: int, supervisor: int, log: Callable[[str], None]) -> None:
        """Store the place; `supervisor` is the id of the process that forked this one, `log` takes one line."""
        self.shared = shared
        self.place = place
        self._log = log
        self._supervisor = supervisor
        self.publish: Callable[[], None] = lambda: None

    def log(self, line: str) -> None:
        """Print a line that says which process it is of."""
        self._log(f"process {self.place + 1}: {line}")

    def ready(self, lines: Sequence[str]) -> None:
        """Publish the metrics, and become one of those that answer. Only the first of all prints the lines."""
        if not self.shared.restarts and not self.shared.ready:
            for line in lines:
                self._log(line)
        self.publish()
        self.shared.set_state(self.place, READY)

    def has_more_connections(self, count: int) -> bool:
        """Return whether this process has more open connections than another one that is ready."""
        self.shared.set_connections(self.place, count)
        others = (place for place in range(self.shared.places) if place != self.place)
        return any(self.shared.state(place) == READY and self.shared.connections(place) < count for place in others)

    def alive(self) -> None:
        """Publish the metrics, and say that this process works. Without its supervisor, it stops."""
        self.publish()
        self.shared.beat(self.place)
        if os.getppid() != self._supervisor:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopping(self) -> None:
        """Do nothing: the supervisor tells systemd."""

    def stopped(self) -> None:
        """Do nothing: the supervisor prints a line once all have stopped."""
