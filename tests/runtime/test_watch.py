"""`clf-run --watch`: each new file gets one record when it is complete, across restarts."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
from conftest import BIN, HAS_LOCKS

from clf_runtime.classifier import Classifier
from clf_runtime.cli import command as clf_run
from clf_runtime.errors import DataError, MachineError
from clf_runtime.watch.events import FolderEvents
from clf_runtime.watch.files import SETTLE_S, CompletionCheck, FileVersion, is_open_for_writing, list_versions
from clf_runtime.watch.results import Results
from clf_runtime.watch.run import WatchOptions, WatchRun

KEYS = ["path", "label", "index", "score", "top", "provider", "size_bytes", "modified_ns"]
HAS_LEASES = sys.platform == "linux" and importlib.util.find_spec("fcntl") is not None
on_linux = pytest.mark.skipif(not HAS_LEASES, reason="no leases, and closing is not reported")


class Watcher:
    """A process of clf-run that watches the folder `in` and writes results.jsonl."""

    def __init__(self, folder, model, *arguments):
        (folder / "in").mkdir(exist_ok=True)
        self.folder, self.incoming = folder, folder / "in"
        command = [BIN / "clf-run", "--watch", "in", "--output", "results.jsonl", "--model", model, *arguments]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        self.first_line = self.process.stderr.readline()

    def records(self):
        path = self.folder / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, count):
        """Wait for so many records."""
        follow = ["tail", "-n", "+1", "-F", self.folder / "results.jsonl"]
        with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tail:
            for _ in range(count):
                assert tail.stdout.readline()
            tail.terminate()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@on_linux  # elsewhere, a file that has not changed for two seconds counts as complete
def test_files_are_classified_once_when_they_are_complete_and_moved(tmp_path, model, samples):
    watcher = Watcher(tmp_path, model, "--move-to", "done")
    assert watcher.first_line == "clf-run: watching in; 0 of 0 images have results\n"
    content = samples[0].read_bytes()
    with (watcher.incoming / "slow.png").open("wb") as slow:
        slow.write(content[:50])
        slow.flush()
        (tmp_path / "aside.png").write_bytes(content)
        (tmp_path / "aside.png").rename(watcher.incoming / "moved.png")
        shutil.copy(samples[1], watcher.incoming)
        (watcher.incoming / "damaged.png").write_bytes(content[:60])
        (watcher.incoming / "notes.txt").write_text("no image")
        watcher.wait_for(3)
        assert not any("slow" in record["path"] for record in watcher.records())
        slow.write(content[50:])
    watcher.wait_for(4)
    code, err = watcher.end()
    assert (code, err) == (143, "clf-run: 4 images, 1 failed, on CPUExecutionProvider\n")
    records = {record["path"]: record for record in watcher.records()}
    assert sorted(records) == sorted(f"in/{name}" for name in ("damaged.png", samples[1].name, "moved.png", "slow.png"))
    assert list(records["in/slow.png"]) == KEYS
    assert records["in/slow.png"]["label"] == samples[0].name[0]
    assert records["in/damaged.png"]["error"]["kind"] == "damaged"
    Watcher(tmp_path, model, "--move-to", "done").end()  # in case the signal came between a record and the moving
    assert [path.name for path in watcher.incoming.iterdir()] == ["notes.txt"]
    assert len(list((tmp_path / "done").iterdir())) == 4


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_killed_again_and_again_no_file_is_lost_or_repeated(tmp_path, model, samples, count):
    watcher = Watcher(tmp_path, model, "--move-to", "done")
    source = tmp_path / "source.png"
    shutil.copy(samples[0], source)
    for number in range(count):
        os.link(source, watcher.incoming / f"{number}.png")
    for part in range(1, 4):
        watcher.wait_for(count * part // 4)
        code, _ = watcher.end(signal.SIGKILL)
        assert code == -signal.SIGKILL
        watcher = Watcher(tmp_path, model, "--move-to", "done")
    watcher.wait_for(count)
    code, _ = watcher.end(signal.SIGINT)
    assert code == 130
    paths = [record["path"] for record in watcher.records()]
    assert len(paths) == len(set(paths)) == count
    # A file whose record is there, but that was not moved yet, is moved by the next start.
    Watcher(tmp_path, model, "--move-to", "done").end()
    assert not list(watcher.incoming.iterdir())
    assert len(list((tmp_path / "done").iterdir())) == count


@pytest.fixture
def options(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    output = Path("results.jsonl").resolve()
    return WatchOptions(model, "cpu", 1, 512_000_000, 8, 1, 0.0, "in", False, output, None)


def records():
    return [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()]


class Clock:
    """Replaces `time.monotonic` of the completion check: every listing is SETTLE_S later."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        original = CompletionCheck.select

        def select(check, versions, created, closed, now):
            self.now += SETTLE_S
            return original(check, versions, created, closed, self.now)

        monkeypatch.setattr(CompletionCheck, "select", select)


def watch(options, times, messages=None):
    """List the folder so many times, without events, and classify what is complete."""
    run = WatchRun(options, [].append if messages is None else messages.append)
    run._events.wait = lambda timeout_s: None
    with Results(options.output) as results:
        run._find_done(results)
        for _ in range(times):
            run._classify_new(results)
    return run


def test_without_any_event_files_are_found_by_listing_the_folder(options, samples, monkeypatch):
    Clock(monkeypatch)
    shutil.copy(samples[0], "in/a.png")
    watch(options, times=1)
    assert Path("results.jsonl").read_text() == ""  # it may still be written
    watch(options, times=3)
    assert [record["path"] for record in records()] == ["in/a.png"]


def test_a_file_that_is_written_again_gets_another_record_also_after_a_restart(options, samples, monkeypatch):
    Clock(monkeypatch)
    shutil.copy(samples[0], "in/a.png")
    watch(options, times=2)
    run = watch(options, times=2)
    assert len(records()) == 1
    assert run.statistics.images == 0
    shutil.copy(samples[-1], "in/a.png")
    watch(options, times=2)
    assert [record["label"] for record in records()] == [samples[0].name[0], samples[-1].name[0]]


def test_a_file_that_changes_while_it_is_classified_is_classified_again(options, samples, monkeypatch):
    Clock(monkeypatch)
    shutil.copy(samples[0], "in/a.png")
    shutil.copy(samples[0], "in/b.png")
    original = Classifier.predict_sources

    def predict_and_write(classifier, sources, **options):
        for pair in original(classifier, sources, **options):
            shutil.copy(samples[-1], "in/a.png")
            Path("in/b.png").unlink(missing_ok=True)
            yield pair

    monkeypatch.setattr(Classifier, "predict_sources", predict_and_write)
    watch(options, times=2)
    assert Path("results.jsonl").read_text() == ""
    monkeypatch.setattr(Classifier, "predict_sources", original)
    watch(options, times=2)
    assert [(record["path"], record["label"]) for record in records()] == [("in/a.png", samples[-1].name[0])]


def test_results_have_the_threshold_and_a_second_file_of_a_name_gets_a_number(options, samples, monkeypatch):
    Clock(monkeypatch)
    monkeypatch.setattr("clf_runtime.watch.run._SECONDS_BETWEEN_SYNCS", 0.0)
    options = WatchOptions(**{**vars(options), "threshold": 1.0, "move_to": Path("done"), "recursive": True})
    for _ in range(3):
        Path("in/sub").mkdir(exist_ok=True)
        shutil.copy(samples[0], "in/sub/a.png")
        Path("in/sub/broken.png").write_bytes(b"broken")
        watch(options, times=2)
    assert {record.get("label") for record in records()} == {"unknown", None}
    names = [f"{name}{number}.png" for name in ("a", "broken") for number in ("-2", "-3", "")]
    assert sorted(path.name for path in Path("done/sub").iterdir()) == sorted(names)


def test_a_file_that_somebody_else_moves_is_no_error(options, samples):
    options = WatchOptions(**{**vars(options), "move_to": Path("done")})
    WatchRun(options, print)._move(FileVersion("in/gone.png", 1, 1))
    assert not list(Path("done").iterdir())


def test_a_folder_that_vanishes_for_a_while_is_reported_once(options, samples, monkeypatch):
    Clock(monkeypatch)
    run, messages = WatchRun(options, print), []
    run._warn, run._events.wait = messages.append, lambda timeout_s: None
    shutil.copy(samples[0], "in/a.png")
    with Results(options.output) as results:
        Path("in").rename("away")
        for _ in range(3):
            run._classify_new(results)
        Path("away").rename("in")
        for _ in range(3):
            run._classify_new(results)
    assert messages == ["in: no such file or directory; trying again every 2 s"]
    assert len(records()) == 1


def test_a_system_without_watches_left_is_reported_and_the_folder_listed(options, monkeypatch):
    messages = []

    def fail(*_):
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(FolderEvents, "start", fail)
    run = WatchRun(options, messages.append)
    run._start_events()
    assert messages == ["in: cannot be watched ([Errno 28] inotify watch limit reached); listing it every 2 s"]


def test_a_gpu_that_does_not_work_is_reported(options, monkeypatch):
    messages = []
    monkeypatch.setattr(Classifier, "warning", "CUDA does not work here")
    WatchRun(options, messages.append)
    assert messages == ["CUDA does not work here"]


@on_linux
def test_a_file_is_open_for_writing_until_the_last_process_closes_it(tmp_path):
    path = str(tmp_path / "a.png")
    with Path(path).open("wb"):
        assert is_open_for_writing(path) is True
    with Path(path).open("rb"):
        assert is_open_for_writing(path) is False
    assert is_open_for_writing(str(tmp_path / "gone")) is None


@on_linux
def test_where_it_is_unknown_whether_a_file_is_written_its_events_and_its_age_count(tmp_path, monkeypatch):
    import fcntl

    def no_lease(*_):
        raise OSError(errno.EINVAL, "no leases here")

    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    version = FileVersion.of(str(path))
    monkeypatch.setattr(fcntl, "fcntl", no_lease)
    assert is_open_for_writing(version.path) is None
    assert CompletionCheck().select([version], {version.path}, set(), 0.0) == []
    assert CompletionCheck().select([version], set(), {version.path}, 0.0) == [version]
    check = CompletionCheck()
    assert [check.select([version], set(), set(), now) for now in (0.0, 1.9, 2.0)] == [[], [], [version]]
    monkeypatch.delattr(fcntl, "F_SETLEASE")  # as on macOS
    assert is_open_for_writing(version.path) is None
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    assert is_open_for_writing(version.path) is None


@on_linux
def test_a_file_of_which_nobody_reported_the_end_is_not_read_while_it_is_open(tmp_path):
    path = tmp_path / "a.png"
    check = CompletionCheck()
    with path.open("wb") as file:
        file.write(b"1")
        file.flush()
        version = FileVersion.of(str(path))
        assert check.select([version], {version.path}, {version.path}, 0.0) == []
        assert check.select([version], set(), set(), 1000.0) == []
    assert check.select([version], {version.path}, set(), 1000.5) == [version]


def test_an_empty_file_is_complete_only_if_it_stays_empty(tmp_path):
    (tmp_path / "a.png").touch()
    version, check = FileVersion.of(str(tmp_path / "a.png")), CompletionCheck()
    assert check.select([version], set(), {version.path}, 0.0) == []
    assert check.select([version], set(), set(), SETTLE_S) == [version]


def test_only_regular_files_with_an_image_suffix_are_listed(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.JPG", ".hidden.png", "c.txt", "sub/d.png"):
        (tmp_path / name).touch()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    assert [Path(each.path).name for each in list_versions(str(tmp_path), False)] == ["a.JPG", "b.png"]
    assert [Path(each.path).name for each in list_versions(str(tmp_path), True)] == ["a.JPG", "b.png", "d.png"]
    with pytest.raises(FileNotFoundError):
        list(list_versions(str(tmp_path / "gone"), False))


@on_linux
def test_events_name_files_as_the_folder_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    events = FolderEvents("in/")
    events.stop()  # nothing to end yet
    events.start(recursive=False)
    Path("in/a.png").write_bytes(b"1")
    created, closed = set(), set()
    while not (created and closed):
        events.wait(10)
        for known, new in zip((created, closed), events.take(), strict=True):
            known |= new
    events.stop()
    while threading.active_count() > 1:  # or the test ends by its time limit
        time.sleep(0.01)
    assert created == closed == {"in/a.png"} == {version.path for version in list_versions("in/", False)}


LINE = json.dumps({"path": "in/a.png", "label": "1", "size_bytes": 3, "modified_ns": 4}) + "\n"


@pytest.mark.parametrize("tail", ["", LINE[:20], LINE[:-1], "\0" * 5000, LINE[:9] + "\0" * 10])
@pytest.mark.parametrize("lines", [0, 2])
def test_a_record_that_a_power_failure_left_incomplete_is_removed(tmp_path, lines, tail):
    path = tmp_path / "results.jsonl"
    path.write_text(LINE * lines + tail)
    with Results(path) as results:
        assert list(results.versions()) == [FileVersion("in/a.png", 3, 4)] * lines
        results.append(FileVersion("in/b.png", 5, 6), {"path": "in/b.png"})
    assert path.read_text() == LINE * lines + '{"path": "in/b.png", "size_bytes": 5, "modified_ns": 6}\n'


@pytest.mark.parametrize(
    "content", ["my notes", "my notes\n", LINE + "my notes\n", LINE + "[]\n", LINE + '{"path": 1}\n']
)
def test_a_file_of_something_else_is_not_touched(tmp_path, content):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="name another --output"), Results(path) as results:
        list(results.versions())
    assert path.read_text() == content


@pytest.mark.skipif(not HAS_LOCKS, reason="no file locks")
def test_two_processes_cannot_write_the_same_results(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path), pytest.raises(MachineError, match="another clf-run writes this file"), Results(path):
        pass


def test_a_full_disk_leaves_no_part_of_a_record(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(LINE)
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Results(path) as results, contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(LINE) + 10, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(OSError, match=r"results\.jsonl"):
            results.append(FileVersion("in/b.png", 5, 6), {"path": "in/b.png"})
    assert path.read_text() == LINE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--watch", "in"], "--watch needs a file for the results"),
        (["--watch", "in", "-o", "r.jsonl", "img.jpg"], "an IMAGE cannot be used with --watch"),
        (["--watch", "in", "-o", "r.jsonl", "--server", "http://a"], "--server cannot be used with --watch"),
        (["--watch", "in", "-o", "r.jsonl", "--stream"], "--stream cannot be used with --watch"),
        (["--watch", "in", "-o", "r.jsonl", "--format", "csv"], "--watch writes jsonl, not csv"),
        (["--watch", "gone", "-o", "r.jsonl"], "--watch gone: no such folder"),
        (["--watch", "in", "-o", "r.jsonl", "--move-to", "in"], "--move-to in: is watched itself"),
        (["--watch", "in", "-o", "r.jsonl", "--move-to", "in/done", "-r"], "--move-to in/done: is watched itself"),
        (["--watch", "in", "-o", "r.jsonl", "--move-to", "no/done"], "--move-to no/done: No such file or directory"),
        (["--watch", "in", "-o", "r.jsonl", "--move-to", "/dev/shm"], "on another file system than in"),
        (["--move-to", "done", "img.jpg"], "--move-to needs --watch"),
        (["--watch", "in", "-o", "r.jsonl", "--on-change"], "need --stream"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    if "/dev/shm" in arguments and Path("/dev/shm").stat().st_dev == Path("in").stat().st_dev:
        pytest.skip("/dev/shm is on the same file system")
    with pytest.raises(click.UsageError, match=message):
        clf_run.main(arguments, standalone_mode=False)


def test_without_watchdog_the_error_names_the_extra(command, home):
    code = "import sys; sys.modules['watchdog'] = None; from clf_runtime.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--watch", ".", "-o", "r.jsonl"], cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 4
    assert done.stderr == 'clf-run: watchdog is not installed; pip install "clf-edge[watch]"\n'


def test_the_results_stay_where_they_are_without_move_to(options, samples, monkeypatch, capsys):
    def execute(run):
        assert run._options == options
        raise KeyboardInterrupt

    monkeypatch.setattr(WatchRun, "execute", execute)
    arguments = ["--watch", "in", "-o", "results.jsonl", "--format", "jsonl", "--device", "cpu", "--threads", "1"]
    with pytest.raises((KeyboardInterrupt, click.Abort)):
        clf_run.main([*arguments, "--model", str(options.model)], standalone_mode=False)
    assert capsys.readouterr().err.strip() == "clf-run: 0 images, 0 failed, on CPUExecutionProvider"
