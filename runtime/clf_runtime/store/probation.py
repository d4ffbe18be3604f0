"""A new version on probation: the service that runs it judges it, and returns to the version before if it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from clf_runtime.errors import ClfError, format_os_error
from clf_runtime.store.state import State
from clf_runtime.store.store import Store

MAX_STARTS = 3  # with no orderly stop: the next start returns to the version before
MIN_FAILURES = 5  # fewer failed batches say nothing about a rate


@dataclass
class BatchCounts:
    """How many batches a model has classified, and how many failed for a reason that is not in their images."""

    classified: int = 0
    failed: int = 0

    @property
    def failure_rate(self) -> float:
        """The share of batches that failed, 0..1."""
        return self.failed / max(1, self.classified + self.failed)


class ProbationWatch:
    """Watches over the version on probation. A store that cannot be written never ends the service."""

    def __init__(self, store: Store, log: Callable[[str], None]) -> None:
        """Store what to watch; `log` takes one line about each decision."""
        self._store = store
        self._log = log
        self._version: str | None = None  # the one on probation that this process runs
        self._ends_s = 0.0

    def begin(self) -> None:
        """Record that a service starts with the current version; return to the one before if it crashed too often."""
        self._version = None
        self._attempt(self._begin)

    def end(self) -> None:
        """Record an orderly stop."""
        if self._version is not None:
            self._attempt(self._forget_start)

    def fail(self, reason: str) -> bool:
        """Return to the version before, if the current one is on probation. Return whether that was done."""
        before = self._store.current
        self._attempt(lambda state: self._fall_back(state, reason))
        return self._store.current != before

    def check(self, counts: BatchCounts, former: BatchCounts) -> None:
        """Judge the version by its batches and those of the model before it; call it about once a second."""
        if self._version is None:
            return
        if counts.failed >= MIN_FAILURES and counts.failure_rate > former.failure_rate:
            self.fail(f"{counts.failure_rate:.0%} of its batches failed, {former.failure_rate:.0%} before")
        elif time.monotonic() >= self._ends_s:
            self._attempt(self._pass)

    def _begin(self, state: State) -> None:
        probation = state.probation
        if probation is None or probation.version != self._store.current:
            return
        if probation.starts >= MAX_STARTS:
            self._fall_back(state, f"the service ended {probation.starts} times without being stopped")
            return
        replace(state, probation=replace(probation, starts=probation.starts + 1)).write(self._store.folder)
        self._version = probation.version
        self._ends_s = time.monotonic() + probation.seconds

    def _forget_start(self, state: State) -> None:
        if state.probation is not None and state.probation.version == self._version:
            starts = max(0, state.probation.starts - 1)
            replace(state, probation=replace(state.probation, starts=starts)).write(self._store.folder)

    def _fall_back(self, state: State, reason: str) -> None:
        probation = state.probation
        if probation is None or probation.version != self._store.current:
            return
        name = self._store.roll_back(reason)
        self._version = None
        self._log(f"{probation.version} failed its probation ({reason}); {name} runs again")

    def _pass(self, state: State) -> None:
        if state.probation is not None and state.probation.version == self._version:
            replace(state, probation=None).write(self._store.folder)
            self._log(f"{self._version} has passed its probation")
        self._version = None

    def _attempt(self, change: Callable[[State], None]) -> None:
        try:
            with self._store.locked() as state:
                change(state)
        except (ClfError, OSError) as error:
            self._version = None
            reason = format_os_error(error) if isinstance(error, OSError) else str(error)
            self._log(f"no probation: the store cannot be changed ({reason})")
