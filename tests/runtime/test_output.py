"""`clf-run --output`, `--resume`, `--threshold`, and the progress bar on a terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BIN, HAS_LOCKS

from clf_runtime import Prediction, Score, progress
from clf_runtime.cli import _summarize
from clf_runtime.errors import DataError, MachineError
from clf_runtime.predictions import FORMATTERS, UNKNOWN
from clf_runtime.progress import ProgressBar, format_duration, format_rate
from clf_runtime.run import RunStatistics
from clf_runtime.sinks import output
from clf_runtime.sinks.output import Output

KILLING = Path(__file__).with_name("killing.py")


@pytest.fixture
def folder(tmp_path, artifacts, samples):
    """A folder with 16 images and a file that is none, and a model beside them."""
    (tmp_path / "in").mkdir()
    for sample in samples:
        shutil.copy(sample, tmp_path / "in")
    (tmp_path / "in/4-bad.png").write_text("Dear Sir or Madam")
    shutil.copy(artifacts / "model.onnx", tmp_path)
    return tmp_path


@pytest.fixture
def run(command):
    return lambda *arguments, **options: command("clf-run", "-m", "model.onnx", *arguments, **options)


def test_a_label_below_the_threshold_is_unknown_and_its_score_stays(run, folder):
    originals = [json.loads(line) for line in run("in", "--format", "jsonl", "--top", 2).out.splitlines()]
    scores = sorted(record["score"] for record in originals if "score" in record)
    threshold = scores[8]
    records = [
        json.loads(line)
        for line in run("in", "--format", "jsonl", "--top", 2, "--threshold", threshold).out.splitlines()
    ]
    assert 7 <= sum(record.get("label") == UNKNOWN for record in records) <= 9
    for original, record in zip(originals, records, strict=True):
        if record.get("label") == UNKNOWN:
            assert record["score"] < threshold + 1e-6
            record |= {"label": original["label"], "index": original["index"]}
        assert record == original
    rows = list(csv.DictReader(io.StringIO(run("in", "--format", "csv", "--threshold", 1).out)))
    assert {(row["label"], row["index"]) for row in rows if row["rank"] == "1"} == {(UNKNOWN, "")}
    line = run("in/0-1.png", "--top", 2, "--threshold", 1).out
    assert line.split("\t")[1] == UNKNOWN
    assert line.split("\t")[3] == originals[0]["top"][1]["label"]


def test_a_score_equal_to_the_threshold_is_accepted():
    prediction = Prediction("a.png", "cat", 3, 0.5, (Score("cat", 0.5),), "CPUExecutionProvider")
    assert prediction.apply_threshold(0.5) is prediction
    unknown = prediction.apply_threshold(0.51)
    assert (unknown.label, unknown.index, unknown.score, unknown.top) == (UNKNOWN, None, 0.5, prediction.top)


@pytest.mark.parametrize("kind", ["text", "jsonl", "json", "csv"])
def test_the_output_file_contains_what_stdout_would(run, folder, kind):
    expected = run("in", "--format", kind, "--top", 2)
    done = run("in", "--format", kind, "--top", 2, "--output", "answers")
    assert (done.code, done.out) == (1, "")
    assert (folder / "answers").read_text() == expected.out
    assert sorted(path.name for path in folder.iterdir()) == ["answers", "in", "model.onnx"]


def test_an_existing_file_is_replaced_only_at_the_end_of_the_run(run, folder):
    (folder / "answers").write_text("results of yesterday")
    assert run("in", "-o", "answers", "--device", "cuda").code == 4
    assert (folder / "answers").read_text() == "results of yesterday"
    assert run("in/0-1.png", "-o", "answers").code == 0
    assert (folder / "answers").read_text().startswith("in/0-1.png\t0\t")


def test_a_link_is_followed_to_the_file_that_is_replaced(run, folder):
    (folder / "real").write_text("old")
    (folder / "answers").symlink_to("real")
    assert run("in/0-1.png", "-o", "answers").code == 0
    assert (folder / "answers").is_symlink()
    assert (folder / "real").read_text().startswith("in/0-1.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in", "-o", "none/answers"), "folder none does not exist; create it first"),
        (("in", "-o", "in"), "not a regular file"),
        (("in", "-o", "/dev/null"), "redirect stdout to it"),
        (("in", "-o", "in/0-1.png"), "named like an image or a model"),
        (("in", "-o", "model.onnx"), "named like an image or a model"),
        (("in", "--resume"), "--resume needs the file of the interrupted run: name it with --output"),
        (("in", "--threshold", "1.5"), "is not in the range"),
    ],
)
def test_an_output_that_cannot_be_written_is_a_usage_error_before_anything_runs(run, folder, arguments, message):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run(*arguments)
    assert done.code == 2
    assert message in done.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each run is a fork")
@pytest.mark.parametrize("kind", ["text", "jsonl", "json", "csv"])
def test_a_run_killed_anywhere_resumes_without_repeating_or_losing_an_image(run, folder, kind):
    arguments = ["-m", "model.onnx", "in", "--format", kind, "--batch-size", "3", "--threads", "1"]
    assert run("in", "--format", kind, "--output", "expected").code == 1
    done = subprocess.run(
        [sys.executable, KILLING, "answers", "expected", *arguments, "-o", "answers"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 17
    resumed = re.findall(r"17 images \((\d+) by the interrupted run\)", done.stderr)
    assert len(set(resumed)) >= 11  # not from the beginning each time


def interrupt_run(folder: Path, signal_number: int) -> str:
    """Interrupt a run with --output that has classified some images and waits for one on stdin; return its stderr."""
    images = [f"in/{path.name}" for path in sorted((folder / "in").iterdir())]
    code = (
        "from clf_runtime import cli\n"
        "from clf_runtime.sinks import journal, output\n"
        "output.SECONDS_BETWEEN_CHECKPOINTS = 0\n"
        "add = journal.Journal.add\n"
        "def add_and_print(self, checkpoint):\n"
        "    add(self, checkpoint)\n"
        "    print(checkpoint.images, flush=True)\n"
        "journal.Journal.add = add_and_print\n"
        "cli.main()\n"
    )
    options = ["-m", "model.onnx", "--batch-size", "1", "--threads", "2", "-o", "answers"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options, *images[:12], "-", *images[12:]],
        cwd=folder,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )
    while int(process.stdout.readline()) < 3:
        pass
    process.send_signal(signal_number)
    process.wait(60)  # its stdin stays open until then
    return process.communicate()[1]


def test_a_killed_run_leaves_the_existing_file_and_resumes_on_request(run, folder, samples):
    (folder / "answers").write_text("results of yesterday")
    interrupt_run(folder, signal.SIGKILL)
    assert (folder / "answers").read_text() == "results of yesterday"
    images = [f"in/{path.name}" for path in sorted((folder / "in").iterdir())]
    arguments = [*images[:12], "-", *images[12:]]
    done = run(*arguments, "-o", "answers", "--resume", stdin=samples[3].read_bytes())
    assert done.code == 1
    assert re.search(r"18 images \(\d+ by the interrupted run\), 1 failed, [\d,.]+ images/s", done.err)
    assert (folder / "answers").read_text() == run(*arguments, stdin=samples[3].read_bytes()).out
    assert not list(folder.glob("*.partial*"))


def test_ctrl_c_keeps_the_results_and_shows_how_to_resume(folder):
    stderr = interrupt_run(folder, signal.SIGINT)
    assert re.search(r"^clf-run: interrupted; --resume continues after \d+ images\n$", stderr)
    assert (folder / "answers.partial").exists()


def test_without_resume_an_interrupted_run_is_discarded_with_a_warning(run, folder):
    interrupt_run(folder, signal.SIGKILL)
    done = run("in/0-1.png", "-o", "answers")
    assert done.code == 0
    assert re.search(r"answers: starting over; --resume would have continued after \d+ images", done.err)
    assert not list(folder.glob("*.partial*"))


def test_resume_without_an_interrupted_run_starts_from_the_beginning_with_a_warning(run, folder):
    done = run("in/0-1.png", "-o", "answers", "--resume")
    assert done.code == 0
    assert "there is no interrupted run to resume; starting from the beginning" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in", "--top", "2"), "--top was 1, is 2"),
        (("in", "--format", "csv"), "--format was text, is csv"),
        (("in", "--threshold", "0.5"), "--threshold was 0.0, is 0.5"),
        (("in/9-1.png", "in"), "images are not those that the interrupted run has classified"),
        (("in/0-1.png",), "images are not those that the interrupted run has classified"),
    ],
)
def test_a_different_run_cannot_be_resumed(run, folder, arguments, message):
    interrupt_run(folder, signal.SIGKILL)
    partial = (folder / "answers.partial").read_bytes()
    done = run(*arguments, "-o", "answers", "--resume")
    assert done.code == 3
    assert message in done.error
    assert "leave out --resume to start over" in done.error
    assert (folder / "answers.partial").read_bytes() == partial


def test_a_run_in_another_folder_cannot_be_resumed(run, folder):
    interrupt_run(folder, signal.SIGKILL)
    shutil.copytree(folder, folder / "copy", ignore=shutil.ignore_patterns("copy"))
    done = run("in", "-o", "answers", "--resume", cwd=folder / "copy")
    assert done.code == 3
    assert f"folder was {folder}, is {folder / 'copy'}" in done.error


@pytest.mark.skipif(not HAS_LOCKS, reason="no file locks here")
def test_two_runs_cannot_write_the_same_file(run, folder):
    with new_output(folder):
        done = run("in", "-o", "answers")
    assert done.code == 4
    assert done.error == (
        f"clf-run: {folder / 'answers'}: another clf-run writes this file; wait until it has finished"
    )


def test_a_run_works_without_a_lock_if_files_cannot_be_locked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with new_output(tmp_path) as output:
        output.write(None, "hello\n")
    assert (tmp_path / "answers").read_text() == "hello\n"


def test_a_run_that_fails_before_its_first_image_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), new_output(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("count", [1, 100_000], ids=["at the end", "before the end"])
def test_a_full_disk_is_an_error_with_the_name_of_the_file(tmp_path, count):
    (tmp_path / "answers.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as error, new_output(tmp_path) as output:
        output.write(None, "hello\n" * count)
    assert error.value.filename == str(tmp_path / "answers")


def results(count: int) -> list[Prediction]:
    """Return predictions of images with different names."""
    scores = (Score("cat", 0.5),)
    return [Prediction(f"{number}.png", "cat", 0, 0.5, scores, "CPU") for number in range(count)]


def new_output(folder: Path, resume: bool = False) -> Output:
    """Return the output file `answers`."""
    return Output(folder / "answers", {"top": 1}, RunStatistics("CPUExecutionProvider"), resume)


def write_results(output: Output, new: list[Prediction]) -> None:
    """Write results of 100 bytes each."""
    for result in new:
        output._statistics.count(result)
        output.write(result.path, f"{result.path:99}\n")


@pytest.fixture
def partial(tmp_path, monkeypatch) -> Path:
    """The partial file of an interrupted run with 6 results of 100 bytes, and a checkpoint after each."""
    monkeypatch.setattr(output, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    with contextlib.suppress(KeyError), new_output(tmp_path) as interrupted:
        write_results(interrupted, results(6))
        raise KeyError
    return tmp_path / "answers.partial"


def resume(partial: Path) -> int:
    """Resume an interrupted run up to 8 results, and return how many it had."""
    with new_output(partial.parent, resume=True) as resumed:
        done = resumed._statistics.resumed
        for result in results(8)[:done]:
            resumed.skip(result.path)
        resumed.check_skipped()
        write_results(resumed, results(8)[done:])
    assert partial.with_name("answers").read_text() == "".join(f"{result.path:99}\n" for result in results(8))
    return done


def test_results_truncated_by_a_power_failure_are_computed_again(partial):
    content = partial.read_bytes()
    partial.write_bytes(content[:450])
    assert resume(partial) == 4


def test_results_zeroed_by_a_power_failure_are_computed_again(partial):
    content = partial.read_bytes()
    partial.write_bytes(content[:230] + bytes(370))
    assert resume(partial) == 2


@pytest.mark.parametrize(("end", "done"), [(-1, 5), (-40, 5), (300, 2), (5, 0), (0, 0)])
def test_a_truncated_journal_counts_up_to_its_last_complete_line(partial, end, done):
    path = partial.with_name("answers.partial.journal")
    path.write_bytes(path.read_bytes()[:end])
    assert resume(partial) == done


@pytest.mark.parametrize("damage", [b"not a line\n", b"\xff\xff\n", b"a b c d e f\n", b"1 1 1 a b 2\n"])
def test_a_journal_counts_up_to_a_damaged_line(partial, damage):
    path = partial.with_name("answers.partial.journal")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], damage, *lines[4:]]))
    assert resume(partial) == 3


@pytest.mark.parametrize("first", [b"\0\0\0\0\n", b"\xff\n"])
def test_a_journal_with_a_damaged_first_line_is_ignored(partial, first):
    path = partial.with_name("answers.partial.journal")
    path.write_bytes(first + b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    assert resume(partial) == 0


def test_results_without_a_checkpoint_stay_if_a_different_run_cannot_be_resumed(partial):
    content = partial.read_bytes() + b"a result that was written just before the kill\n"
    partial.write_bytes(content)
    journal = partial.with_name("answers.partial.journal")
    lines = journal.read_bytes()

    def resume_different() -> None:
        with new_output(partial.parent, resume=True) as different:
            different.skip("other.png")
            different.check_skipped()

    with pytest.raises(DataError, match="not those"):
        resume_different()
    assert (partial.read_bytes(), journal.read_bytes()) == (content, lines)
    assert resume(partial) == 6


def remove_partial(folder: Path) -> None:
    (folder / "answers.partial").unlink()


def replace_partial(folder: Path) -> None:
    (folder / "answers.partial").rename(folder / "aside")
    (folder / "answers.partial").write_text("not ours")


def move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replace_folder(folder: Path) -> None:
    move_folder(folder)
    folder.write_text("a file")


@pytest.mark.parametrize("attack", [remove_partial, replace_partial, move_folder, replace_folder])
@pytest.mark.parametrize("count", [0, 3])
def test_results_that_lose_their_name_while_they_are_written_are_an_error(tmp_path, monkeypatch, attack, count):
    monkeypatch.setattr(output, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "answers").write_text("results of yesterday")

    def write_and_attack() -> None:
        with new_output(folder) as written:
            write_results(written, results(count))
            attack(folder)

    with pytest.raises(MachineError, match=r"answers\.partial was removed, moved or replaced"):
        write_and_attack()
    left = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert left["answers"] == "results of yesterday"
    assert ("not ours" in left.values()) == (attack is replace_partial)


@pytest.mark.parametrize("existing", [None, "results of yesterday"])
def test_results_that_were_removed_by_hand_are_computed_again(partial, existing):
    partial.unlink()
    if existing is not None:
        partial.with_name("answers").write_text(existing)
    assert resume(partial) == 0


@pytest.mark.parametrize("is_renamed", [False, True])
def test_a_run_that_was_killed_at_its_very_end_is_complete_when_resumed(tmp_path, is_renamed):
    killed = new_output(tmp_path)
    killed.__enter__()
    write_results(killed, results(8))
    killed._finish() if is_renamed else killed._add_checkpoint(is_last=True)
    killed._data.close()
    killed._journal.close(remove=False)
    assert (tmp_path / "answers").exists() == is_renamed
    with new_output(tmp_path, resume=True) as resumed:
        assert resumed.is_complete
        assert resumed._statistics.resumed == 8
        for result in results(8):
            resumed.skip(result.path)
        resumed.check_skipped()
    assert (tmp_path / "answers").read_text() == "".join(f"{result.path:99}\n" for result in results(8))
    assert [path.name for path in tmp_path.iterdir()] == ["answers"]


def test_a_command_that_was_killed_at_its_very_end_only_renames_when_resumed(run, folder):
    # Without its name, as if it had been killed before the file was renamed.
    code = (
        "import os, signal; from clf_runtime import cli, system\n"
        "system.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.main()\n"
    )
    arguments = ["-m", "model.onnx", "in", "--format", "json", "-o", "answers"]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    done = run("in", "--format", "json", "-o", "answers", "--resume")
    assert done.code == 1
    assert done.error == "clf-run: 17 images (17 by the interrupted run), 1 failed, on CPUExecutionProvider"
    assert (folder / "answers").read_text() == run("in", "--format", "json").out


def test_resumed_csv_has_no_second_header():
    formatters = [FORMATTERS["csv"](is_resumed) for is_resumed in (False, True)]
    assert formatters[0].header().startswith('"path","rank",')
    assert formatters[1].header() == ""


@pytest.mark.parametrize(
    ("is_resumed", "count", "expected"),
    [(False, 0, "[]\n"), (False, 2, "[\nA,\nA\n]\n"), (True, 0, "\n]\n"), (True, 2, ",\nA,\nA\n]\n")],
)
def test_json_is_one_list_also_if_it_is_empty_or_resumed(is_resumed, count, expected):
    formatter = FORMATTERS["json"](is_resumed)
    (result,) = results(1)
    text = formatter.header() + "".join(formatter.format(result) for _ in range(count)) + formatter.footer()
    assert text == expected.replace("A", json.dumps(result.to_dict()))


def test_the_summary_shows_no_rate_if_nothing_was_left_to_do():
    statistics = RunStatistics("CPUExecutionProvider")
    statistics.resume(images=17, failures=0)
    assert _summarize(statistics) == "clf-run: 17 images (17 by the interrupted run), 0 failed, on CPUExecutionProvider"


def test_clearing_a_bar_that_was_not_drawn_prints_nothing(capsys):
    ProgressBar(10).clear()
    assert capsys.readouterr().err == ""


def on_a_terminal(*arguments: object, cwd: Path, columns: int = 100) -> str:
    """Run clf-run with stderr on a terminal, and return what the terminal receives."""
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    master, slave = pty.openpty()
    os.set_inheritable(slave, True)

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [BIN / "clf-run", "-m", "model.onnx", *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    process.communicate()
    return read_to_end(master)


def read_to_end(master: int) -> str:
    """Return everything that a terminal received. Its other end is closed; one read may return a part of it."""
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # on Linux, because the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    return shown.decode()


def test_a_terminal_shows_a_progress_bar_that_is_removed_at_the_end(folder):
    shown = on_a_terminal("in", "-", "--format", "jsonl", "-o", "answers", cwd=folder)
    assert re.search(r"\[#{24}\] 18 of 18 images, [\d,.]+ images/s, 0\.0 s left", shown)
    assert shown.splitlines()[-1].split("\r")[-1].startswith("clf-run: 18 images")
    shown = on_a_terminal("in", cwd=folder, columns=40)
    lines = [re.split(r"\r", line)[-1] for line in shown.replace("\r\n", "\n").split("\n")]
    assert lines[0].startswith("clf-run: in/4-bad.png: not-an-image")
    assert all(len(line) < 40 for line in shown.split("\r") if line.startswith("["))


def test_a_bar_is_not_redrawn_for_every_image(monkeypatch):
    reader, terminal = pytest.importorskip("pty").openpty()
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_UPDATES", 3600)
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        bar = progress.ProgressBar(5)
        bar.clear()
        for _ in range(5):
            bar.advance()
        monkeypatch.undo()
    shown = read_to_end(reader)
    assert shown.startswith("\r[")  # nothing was cleared before
    assert set(re.findall(r"\d+ of \d+ images", shown)) == {"1 of 5 images", "5 of 5 images"}


def test_without_a_terminal_there_is_no_progress_bar(run, folder):
    assert "[" not in run("in", "--format", "jsonl").err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.6, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (4e6, "1,111 h 06 min"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds, text):
    assert format_duration(seconds) == text


def test_a_low_rate_has_decimals():
    assert [format_rate(rate) for rate in (0.123, 9.9, 12.3, 12345)] == [
        "0.12 images/s",
        "9.9 images/s",
        "12 images/s",
        "12,345 images/s",
    ]
