"""Runs several processes that serve the same model, and replaces those that end.

This process opens the socket, forks the others, and waits; it loads neither onnxruntime nor uvicorn. The processes
accept connections from the same socket, so those that wait for one that was killed are accepted by another one.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from clf_runtime.errors import EXIT_MACHINE, EXIT_OK, EXIT_TERMINATED, MachineError, format_reason
from clf_serve import listening
from clf_serve.member import Member
from clf_serve.notify import notify
from clf_serve.options import ServeOptions
from clf_serve.shared import ABSENT, READY, STARTING, SharedState

_TICK_S = 1.0
_TICK_WHILE_STARTING_S = 0.05

# A process that lives for less is replaced later and later: after 0, 0.1, 0.2, 0.4 … s. If no other one is ready, the
# service ends after so many in a row.
_SHORT_LIFE_S = 5.0
_FIRST_DELAY_S = 0.1
_MOST_DELAY_S = 10.0
_MOST_SHORT_LIVES = 6

# A process beats every second. One that is silent for as long as a request may take, within these limits, is killed.
_SILENT_S = (3.0, 10.0)
# After SIGTERM, requests may take --timeout; a batch that runs for longer than this many does not end.
_STOPPING_TIMEOUTS = 3


@dataclass
class _Place:
    """A process, and what is known of those before it in the same place."""

    number: int
    process: int = 0  # its id; 0 if there is none
    started: float = 0.0
    due: float = 0.0  # when the next one is started
    short_lives: int = 0  # in a row
    is_new: bool = True  # not seen ready yet
    beats: int = 0
    silent_s: float = 0.0


def supervise(options: ServeOptions, log: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted get their answers first.

    Returns in each process that was forked, too, or raises what `clf_serve.server.serve` does.

    Raises:
        MachineError: The address cannot be used.
        UsageError: There is no such address.
        KeyboardInterrupt: Ctrl-C came before the first process was ready, or a second one before all answers.
        SystemExit: No process could be started; it has said why.
    """
    if not hasattr(os, "fork"):
        raise MachineError("this system cannot fork processes; leave --processes out")
    bound = listening.bind(options.address)
    supervisor = Supervisor(options, bound, log)
    member = supervisor.run()
    if member is None:
        listening.remove(options.address)
        supervisor.raise_for_exit()
    else:
        from clf_runtime.session import silence_log
        from clf_serve.server import serve_as_member

        silence_log()
        serve_as_member(options, bound, member)


class Supervisor:
    """The process that the others are forked from."""

    def __init__(self, options: ServeOptions, bound: socket.socket, log: Callable[[str], None]) -> None:
        """Store what to serve; `run` starts the processes."""
        self._bound = bound
        self._log = log
        self._process = os.getpid()
        self._shared = SharedState(options.processes)
        self._places = [_Place(number) for number in range(options.processes)]
        self._stopping_s = math.ceil(_STOPPING_TIMEOUTS * options.limits.timeout_s)
        self._most_silent_s = min(max(options.limits.timeout_s, _SILENT_S[0]), _SILENT_S[1])
        self._signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM}
        self._was_ready = False
        self._looked = time.monotonic()
        self._notified = 0.0
        self._deadline: float | None = None  # while it stops
        self._code = EXIT_OK
        self._is_incomplete = False  # a process did not stop as it should
        self._interrupt: str | None = None

    def run(self) -> Member | None:
        """Start the processes, and replace those that end, until SIGTERM or Ctrl-C; return None.

        Returns in each process that was forked, too: with its place.
        """
        # From here on, signals wait until they are asked for. In the other processes, Ctrl-C waits for ever: it goes to
        # all processes of a terminal, and this one tells the others.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was ignored, nobody would learn how a process ended
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        while self._deadline is None or any(place.process for place in self._places):
            for place in self._places:
                if self._is_due(place) and self._fork(place):
                    os.environ.pop("NOTIFY_SOCKET", None)
                    signal.pthread_sigmask(signal.SIG_SETMASK, {*mask, signal.SIGINT})
                    return Member(self._shared, place.number, self._process, self._log)
            self._handle(self._wait())
            self._notice_ended()
            self._notice_ready()
            self._check()
        if self._was_ready and self._code == EXIT_OK and self._interrupt is None and not self._is_incomplete:
            self._log("stopped; all accepted requests were answered")
        return None

    def raise_for_exit(self) -> None:
        """Raise KeyboardInterrupt or SystemExit if it did not end as it should."""
        if self._interrupt is not None:
            raise KeyboardInterrupt(self._interrupt)
        if self._code != EXIT_OK:
            raise SystemExit(self._code)

    def _is_due(self, place: _Place) -> bool:
        # The others start once the first one is ready: a model that cannot be loaded is reported once.
        is_first = not place.number or self._was_ready
        return self._deadline is None and not place.process and is_first and place.due <= time.monotonic()

    def _fork(self, place: _Place) -> bool:
        """Start a process; return whether this is it."""
        if place.started:
            self._shared.count_restart()
        place.started, place.is_new = time.monotonic(), True
        self._shared.set_state(place.number, STARTING)
        try:
            place.process = os.fork()
        except OSError as error:
            self._replace(place, f"cannot be started ({format_reason(error)})", None)
            return False
        return not place.process

    def _wait(self) -> int:
        """Wait for a signal, or until it is time to look at the processes."""
        is_starting = any(place.is_new for place in self._places)
        signal.setitimer(signal.ITIMER_REAL, _TICK_WHILE_STARTING_S if is_starting else _TICK_S)
        return signal.sigwait(self._signals)

    def _handle(self, number: int) -> None:
        if number == signal.SIGHUP:
            # The others are still loading, and would end by this signal.
            self._send(number, [place for place in self._places if self._shared.state(place.number) == READY])
        elif number in (signal.SIGTERM, signal.SIGINT) and self._deadline is None:
            if not self._was_ready:
                self._code = EXIT_TERMINATED
                self._interrupt = "" if number == signal.SIGINT else None
            self._stop()
        elif number == signal.SIGINT:
            self._interrupt = "requests in progress got no answer"
            self._send(signal.SIGKILL, self._places)

    def _stop(self) -> None:
        notify("STOPPING=1")
        self._deadline = time.monotonic() + self._stopping_s
        self._bound.close()
        self._send(signal.SIGTERM, self._places)

    def _send(self, number: int, places: list[_Place]) -> None:
        for place in places:
            if place.process:
                os.kill(place.process, number)

    def _notice_ended(self) -> None:
        """Notice the processes that have ended."""
        for place in self._places:
            process, status = os.waitpid(place.process, os.WNOHANG) if place.process else (0, 0)
            if process:
                code = os.waitstatus_to_exitcode(status)
                place.process = 0
                self._shared.set_state(place.number, ABSENT)
                how = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
                self._replace(place, how, code if code >= 0 else None)

    def _replace(self, place: _Place, how: str, code: int | None) -> None:
        """Decide what follows from the end of a process; it has printed why it ended if it has an exit code."""
        if self._deadline is not None:
            if code != EXIT_OK and not place.is_new and self._interrupt is None:
                self._log(f"process {place.number + 1} {how}; its requests got no answer")
                self._is_incomplete = True
            return
        now = time.monotonic()
        place.short_lives = place.short_lives + 1 if now - place.started < _SHORT_LIFE_S else 0
        delay = 0.0 if place.short_lives <= 1 else min(_FIRST_DELAY_S * 2 ** (place.short_lives - 2), _MOST_DELAY_S)
        if not self._was_ready or (place.short_lives >= _MOST_SHORT_LIVES and not self._shared.ready):
            if self._was_ready or code is None:
                self._log(f"process {place.number + 1} {how}; no process is ready, so the service ends")
            self._code = code or EXIT_MACHINE
            self._stop()
        else:
            after = f" in {delay:g} s" if delay else ""
            self._log(f"process {place.number + 1} {how}; it is replaced{after}")
            place.due = now + delay
            place.is_new = True

    def _notice_ready(self) -> None:
        """Notice the processes that have become ready."""
        for place in self._places:
            if place.is_new and self._shared.state(place.number) == READY:
                place.is_new, place.silent_s = False, 0.0
                self._log(f"{self._shared.ready} of {self._shared.places} processes are ready")
                if not self._was_ready:
                    self._was_ready = True
                    notify("READY=1")

    def _check(self) -> None:
        """Kill the processes that do nothing any more, and tell systemd whether any other is left."""
        now = time.monotonic()
        # If this process was stopped, so were the others.
        elapsed_s, self._looked = min(now - self._looked, _TICK_S), now
        if self._deadline is not None:
            if now > self._deadline:
                self._log(f"killing what did not stop within {self._stopping_s} s")
                self._deadline = math.inf
                self._send(signal.SIGKILL, self._places)
            return
        working = [place for place in self._places if place.process and not place.is_new]
        for place in working:
            beats = self._shared.beats(place.number)
            place.silent_s = place.silent_s + elapsed_s if beats == place.beats else 0.0
            place.beats = beats
            if place.silent_s > self._most_silent_s:
                self._log(f"process {place.number + 1} does nothing any more; it is killed")
                os.kill(place.process, signal.SIGKILL)
        if now - self._notified >= _TICK_S and any(place.silent_s < _SILENT_S[0] for place in working):
            self._notified = now
            notify("WATCHDOG=1")
