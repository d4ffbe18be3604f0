"""Silence for other libraries, and the progress of an export."""

from __future__ import annotations

import ctypes
import io
import os
import sys
import threading
from pathlib import Path

import pytest

from clf_export.formats import TARGETS
from clf_export.progress import Progress
from clf_export.quiet import quiet
from clf_export.stages import Clock, plan_stages

STAGES = plan_stages(Path("artifacts"), TARGETS[:3], 341, "test")


def print_everywhere(text: str) -> None:
    """Print from Python, past Python, by C's buffered printf, and in another thread."""
    print(text)
    print(text, file=sys.stderr)
    for number in (1, 2):
        os.write(number, text.encode())
    ctypes.CDLL(None).printf(b"%s", text.encode())
    thread = threading.Thread(target=print, args=(text,))
    thread.start()
    thread.join()


def test_inside_the_block_nothing_is_printed_in_any_way_and_afterwards_everything(capfd):
    with quiet():
        print_everywhere("Collecting tensor data and making histogram ...")
    assert capfd.readouterr() == ("", "")
    print("after")
    os.write(2, b"after")
    assert capfd.readouterr() == ("after\n", "after")


def test_an_exception_ends_the_silence(capfd):
    with pytest.raises(KeyboardInterrupt), quiet():
        raise KeyboardInterrupt
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"


def test_the_time_left_follows_from_the_time_of_an_image_in_pytorch_and_falls():
    clock = Clock(STAGES)
    clock.start_stage()
    assert clock.estimate_left_s() is None
    assert clock.estimate_share() == 0
    clock.advance(0.5)
    left = [clock.estimate_left_s()]
    for _ in STAGES[1:]:
        clock.start_stage()
        left.append(clock.estimate_left_s())
        clock.advance(0.5)
        left.append(clock.estimate_left_s())
    clock.advance(1)
    assert left[1:] == sorted(left[1:], reverse=True)
    assert clock.estimate_left_s() == 0
    assert clock.estimate_share() == 1


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_at_a_terminal_a_bar_shows_the_stage_and_the_time_left_and_is_removed(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress() as progress:
        progress.on_start(STAGES)
        for stage in STAGES:
            progress.on_stage()
            progress.on_progress(0.5)
            assert stage.description in terminal.getvalue()
        progress.on_message("INT8: slower")
    shown = terminal.getvalue()
    assert "s left" in shown
    assert "INT8: slower\n" in shown
    assert shown.rpartition("\r")[0].rpartition("\r")[2].strip() == ""
