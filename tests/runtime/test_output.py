"""`clf-run --output`, `--resume`, `--threshold`, and what a person at a terminal sees."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BIN

from clf_runtime import Prediction, Score, progress
from clf_runtime.cli import _summary
from clf_runtime.predictions import UNKNOWN, lines
from clf_runtime.progress import Bar, duration, per_second
from clf_runtime.run import Tally
from clf_runtime.sinks import output
from clf_runtime.sinks.output import Output
from clf_runtime.sources import ImageSource

KILLING = Path(__file__).with_name("killing.py")


@pytest.fixture
def folder(tmp_path, artifacts, samples):
    """A folder with 16 images and one that is none, and a model beside them."""
    (tmp_path / "in").mkdir()
    for sample in samples:
        shutil.copy(sample, tmp_path / "in")
    (tmp_path / "in/4-bad.png").write_text("Dear Sir or Madam")
    shutil.copy(artifacts / "model.onnx", tmp_path)
    return tmp_path


@pytest.fixture
def run(command):
    return lambda *arguments, **options: command("clf-run", "-m", "model.onnx", *arguments, **options)


def test_an_answer_below_the_threshold_is_unknown_and_keeps_its_score(run, folder):
    sure = [json.loads(line) for line in run("in", "--format", "jsonl", "--top", 2).out.splitlines()]
    scores = sorted(each["score"] for each in sure if "score" in each)
    threshold = scores[8]
    told = [
        json.loads(line)
        for line in run("in", "--format", "jsonl", "--top", 2, "--threshold", threshold).out.splitlines()
    ]
    doubted = [each for each in told if each.get("label") == UNKNOWN]
    assert 7 <= len(doubted) <= 9
    for before, after in zip(sure, told, strict=True):
        if after.get("label") == UNKNOWN:
            assert after["score"] < threshold + 1e-6
            after |= {"label": before["label"], "index": before["index"]}
        assert after == before
    rows = list(csv.DictReader(io.StringIO(run("in", "--format", "csv", "--threshold", 1).out)))
    assert {(row["label"], row["index"]) for row in rows if row["rank"] == "1"} == {(UNKNOWN, "")}
    line = run("in/0-1.png", "--top", 2, "--threshold", 1).out
    assert line.split("\t")[1] == UNKNOWN
    assert line.split("\t")[3] == sure[0]["top"][1]["label"]


def test_the_threshold_itself_is_enough():
    answer = Prediction("a.png", "cat", 3, 0.5, (Score("cat", 0.5),), "CPUExecutionProvider")
    assert answer.known_from(0.5) is answer
    doubted = answer.known_from(0.51)
    assert (doubted.label, doubted.index, doubted.score, doubted.top) == (UNKNOWN, None, 0.5, answer.top)


@pytest.mark.parametrize("kind", ["text", "jsonl", "json", "csv"])
def test_a_file_holds_what_stdout_would(run, folder, kind):
    expected = run("in", "--format", kind, "--top", 2)
    done = run("in", "--format", kind, "--top", 2, "--output", "answers")
    assert (done.code, done.out) == (1, "")
    assert (folder / "answers").read_text() == expected.out
    assert sorted(path.name for path in folder.iterdir()) == ["answers", "in", "model.onnx"]


def test_a_file_is_replaced_where_the_run_comes_to_its_end(run, folder):
    (folder / "answers").write_text("those of yesterday")
    assert run("in", "-o", "answers", "--device", "cuda").code == 4
    assert (folder / "answers").read_text() == "those of yesterday"
    assert run("in/0-1.png", "-o", "answers").code == 0
    assert (folder / "answers").read_text().startswith("in/0-1.png\t0\t")


def test_a_link_leads_to_the_file_that_is_replaced(run, folder):
    (folder / "real").write_text("old")
    (folder / "answers").symlink_to("real")
    assert run("in/0-1.png", "-o", "answers").code == 0
    assert (folder / "answers").is_symlink()
    assert (folder / "real").read_text().startswith("in/0-1.png")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("in", "-o", "none/answers"), "there is no folder none; make it first"),
        (("in", "-o", "in"), "it is there, and no file"),
        (("in", "-o", "/dev/null"), "redirect stdout to it"),
        (("in", "-o", "in/0-1.png"), "named like an image or a model"),
        (("in", "-o", "model.onnx"), "named like an image or a model"),
        (("in", "--resume"), "--resume goes on with a file: name it with --output"),
        (("in", "--threshold", "1.5"), "is not in the range"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_run(run, folder, arguments, said):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run(*arguments)
    assert done.code == 2
    assert said in done.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["text", "jsonl", "json", "csv"])
def test_a_run_killed_anywhere_goes_on_without_repeating_or_losing_a_image(run, folder, kind):
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
    gone_on = re.findall(r"17 images \((\d+) of them by the run before\)", done.stderr)
    assert len(set(gone_on)) >= 11  # not from the beginning each time


def unfinished(folder: Path, arguments: list[str], stdin_at: int = 12) -> None:
    """Leave a run that waited for an image on stdin, after some others, and was killed."""
    images = [f"in/{path.name}" for path in sorted((folder / "in").iterdir())]
    code = "from clf_runtime import cli, output; output.SECONDS_BETWEEN_POINTS = 0; cli.main()"
    command = [sys.executable, "-c", code, "-m", "model.onnx", "--batch-size", "1", "--threads", "2", *arguments]
    process = subprocess.Popen(
        [*command, *images[:stdin_at], "-", *images[stdin_at:]],
        cwd=folder,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    written = folder / "answers.partial.journal"
    for _ in range(600):
        if written.exists() and written.read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT if "--top" in arguments else signal.SIGKILL)
    process.wait()
    left = process.stderr.read().decode()
    assert "--top" not in arguments or re.search(r"interrupted; --resume goes on after \d+ images\n$", left)
    process.stdin.close()
    process.stderr.close()


def test_a_killed_run_leaves_what_was_there_and_goes_on_when_asked(run, folder, samples):
    (folder / "answers").write_text("those of yesterday")
    unfinished(folder, ["-o", "answers"])
    assert (folder / "answers").read_text() == "those of yesterday"
    images = [f"in/{path.name}" for path in sorted((folder / "in").iterdir())]
    named = [*images[:12], "-", *images[12:]]
    done = run(*named, "-o", "answers", "--resume", stdin=samples[3].read_bytes())
    assert done.code == 1
    assert re.search(r"18 images \(\d+ of them by the run before\), 1 failed, [\d,.]+ images/s", done.err)
    assert (folder / "answers").read_text() == run(*named, stdin=samples[3].read_bytes()).out
    assert not list(folder.glob("*.partial*"))


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(run, folder):
    unfinished(folder, ["-o", "answers", "--top", "2"])
    assert (folder / "answers.partial").exists()


def test_without_resume_an_unfinished_run_is_started_over_and_that_is_told(run, folder):
    unfinished(folder, ["-o", "answers"])
    done = run("in/0-1.png", "-o", "answers")
    assert done.code == 0
    assert re.search(r"answers: starting over; --resume would have gone on after \d+ images", done.err)
    assert not list(folder.glob("*.partial*"))


def test_nothing_to_go_on_with_is_told(run, folder):
    done = run("in/0-1.png", "-o", "answers", "--resume")
    assert done.code == 0
    assert "there is no unfinished run to go on with; starting from the beginning" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("in", "--top", "2"), "--top was 1, is 2"),
        (("in", "--format", "csv"), "--format was text, is csv"),
        (("in", "--threshold", "0.5"), "--threshold was 0.0, is 0.5"),
        (("in/9-1.png", "in"), "images named now are not those that the unfinished run has answered"),
        (("in/0-1.png",), "images named now are not those that the unfinished run has answered"),
    ],
)
def test_another_run_cannot_be_gone_on_with(run, folder, arguments, said):
    unfinished(folder, ["-o", "answers"])
    left = (folder / "answers.partial").read_bytes()
    done = run(*arguments, "-o", "answers", "--resume")
    assert done.code == 3
    assert said in done.error
    assert "leave out --resume to start over" in done.error
    assert (folder / "answers.partial").read_bytes() == left


def test_another_folder_cannot_be_gone_on_with(run, folder):
    unfinished(folder, ["-o", "answers"])
    shutil.copytree(folder, folder / "copy", ignore=shutil.ignore_patterns("copy"))
    done = run("in", "-o", "answers", "--resume", cwd=folder / "copy")
    assert done.code == 3
    assert f"folder was {folder}, is {folder / 'copy'}" in done.error


def test_two_runs_do_not_write_one_file(run, folder):
    held = Output(folder / "answers", {}, resume=False)
    done = run("in", "-o", "answers")
    assert done.code == 4
    assert done.error == f"clf-run: {folder / 'answers'}: another clf-run is writing it; wait for its end"
    held.__exit__(ValueError, ValueError(), None)


def test_where_files_cannot_be_locked_a_run_goes_on_without(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with Output(tmp_path / "answers", {}, resume=False) as made:
        made.write("hello\n")
    assert (tmp_path / "answers").read_text() == "hello\n"


def test_a_run_that_fails_before_its_first_image_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), Output(tmp_path / "answers", {}, resume=False):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("count", [1, 10_000], ids=["at the end", "on the way"])
def test_a_full_disk_is_told_with_the_files_name(tmp_path, count):
    (tmp_path / "answers.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught, Output(tmp_path / "answers", {}, resume=False) as made:
        made.write("hello\n" * count)
    assert caught.value.filename == str(tmp_path / "answers")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_fills_up_on_the_way_is_told_with_the_files_name(tmp_path):
    (tmp_path / "answers.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught, Output(tmp_path / "answers", {}, resume=False) as made:
        made.write("hello\n" * 100_000)
    assert caught.value.filename == str(tmp_path / "answers")


def results(count: int) -> list[Prediction]:
    scores = (Score("cat", 0.5),)
    return [Prediction(f"{number}.png", "cat", 0, 0.5, scores, "CPU") for number in range(count)]


@pytest.fixture
def partial(tmp_path, monkeypatch):
    """An unfinished run of 6 answers, 100 bytes each, with a point behind every one."""
    monkeypatch.setattr(output, "SECONDS_BETWEEN_POINTS", 0)
    made = Output(tmp_path / "answers", {"top": 1}, resume=False)
    for each in made.noted(results(6)):
        made.write(f"{each.path:99}\n")
    made.__exit__(KeyError, KeyError(), None)
    return tmp_path / "answers.partial"


def resumed(partial: Path) -> int:
    """Go on with an unfinished run to 8 answers, and give how many it had."""
    with Output(partial.with_name("answers"), {"top": 1}, resume=True) as made:
        rest = made.rest_of(ImageSource(each.path, each.path) for each in results(8))
        left = {each.name for each in rest}
        for each in made.noted(each for each in results(8) if each.path in left):
            made.write(f"{each.path:99}\n")
    assert partial.with_name("answers").read_text() == "".join(f"{each.path:99}\n" for each in results(8))
    return made.before.images


def test_what_a_power_cut_tore_off_is_done_again(partial):
    content = partial.read_bytes()
    partial.write_bytes(content[:450])
    assert resumed(partial) == 4


def test_what_a_power_cut_left_as_zeros_is_done_again(partial):
    content = partial.read_bytes()
    partial.write_bytes(content[:230] + bytes(370))
    assert resumed(partial) == 2


@pytest.mark.parametrize(("kept", "done"), [(-1, 5), (-40, 5), (300, 2), (5, 0), (0, 0)])
def test_a_journal_cut_short_counts_up_to_its_last_whole_line(partial, kept, done):
    path = partial.with_name("answers.partial.journal")
    path.write_bytes(path.read_bytes()[: kept or None] if kept < 0 else path.read_bytes()[:kept])
    assert resumed(partial) == done


@pytest.mark.parametrize("damage", [b"not a line\n", b"\xff\xff\n", b"a b c d e f\n", b"1 1 1 a b 2\n"])
def test_a_journals_damaged_line_ends_what_counts(partial, damage):
    path = partial.with_name("answers.partial.journal")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], damage, *lines[4:]]))
    assert resumed(partial) == 3


@pytest.mark.parametrize("first", [b"\0\0\0\0\n", b"\xff\n"])
def test_a_journal_whose_first_line_is_damaged_counts_for_nothing(partial, first):
    path = partial.with_name("answers.partial.journal")
    path.write_bytes(first + b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    assert resumed(partial) == 0


@pytest.mark.parametrize("former", [None, "those of yesterday"])
def test_answers_that_were_removed_by_hand_are_made_again(partial, former):
    partial.unlink()
    if former is not None:
        partial.with_name("answers").write_text(former)
    assert resumed(partial) == 0


@pytest.mark.parametrize("renamed", [False, True])
def test_a_run_that_was_killed_at_its_very_end_has_nothing_left_to_do(tmp_path, renamed):
    made = Output(tmp_path / "answers", {"top": 1}, resume=False)
    for each in made.noted(results(8)):
        made.write(f"{each.path:99}\n")
    made._finish() if renamed else made._mark(ended=True)
    made._data.close()
    made._journal.close(finished=False)
    assert (tmp_path / "answers").exists() == renamed
    with Output(tmp_path / "answers", {"top": 1}, resume=True) as again:
        assert not list(again.rest_of(iter(ImageSource(each.path, each.path) for each in results(8))))
        again.write("\n]\n")
    assert (again.before.images, again.before.ended) == (8, True)
    assert (tmp_path / "answers").read_text() == "".join(f"{each.path:99}\n" for each in results(8))
    assert [path.name for path in tmp_path.iterdir()] == ["answers"]


def test_output_that_goes_on_has_no_second_header():
    written = [list(lines(iter(results(1)), "csv", continued)) for continued in (False, True)]
    assert written[0][1:] == written[1]
    assert len(written[1]) == 1


def test_a_summary_tells_no_speed_where_nothing_was_left_to_do():
    tally = Tally("CPUExecutionProvider")
    tally.before = tally.images = 17
    assert _summary(tally) == "clf-run: 17 images (17 of them by the run before), 0 failed, on CPUExecutionProvider"


def test_a_bar_that_was_not_drawn_needs_no_clearing(capsys):
    Bar(10).clear()
    assert capsys.readouterr().err == ""


def on_a_terminal(*arguments: object, cwd: Path, columns: int = 100) -> str:
    """Run clf-run with stderr on a terminal, and give what that shows."""
    master, slave = pty.openpty()
    os.set_inheritable(slave, True)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [BIN / "clf-run", "-m", "model.onnx", *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    process.communicate()
    return read_to_end(master)


def read_to_end(master: int) -> str:
    """Give what a terminal was sent, whose other side is closed; one read may give the beginning alone."""
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    return shown.decode()


def test_a_person_at_a_terminal_sees_a_bar_that_goes_away(folder):
    shown = on_a_terminal("in", "-", "--format", "jsonl", "-o", "answers", cwd=folder)
    assert re.search(r"\[#{24}\] 18 of 18 images, [\d,.]+ images/s, 0 s left", shown)
    assert shown.splitlines()[-1].split("\r")[-1].startswith("clf-run: 18 images")
    shown = on_a_terminal("in", cwd=folder, columns=40)
    lines = [re.split(r"\r", line)[-1] for line in shown.replace("\r\n", "\n").split("\n")]
    assert lines[0].startswith("clf-run: in/4-bad.png: not-an-image")
    assert all(len(each) < 40 for each in shown.split("\r") if each.startswith("["))


def test_a_bar_is_not_drawn_for_every_image(monkeypatch):
    ours, terminal = pty.openpty()
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_DRAWINGS", 3600)
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        bar = progress.Bar(5)
        bar.clear()
        for _ in range(5):
            bar.step()
        monkeypatch.undo()
    shown = read_to_end(ours)
    assert shown.startswith("\r[")  # nothing was there to be cleared
    assert set(re.findall(r"\d+ of \d+ images", shown)) == {"1 of 5 images", "5 of 5 images"}


def test_without_a_terminal_there_is_no_bar(run, folder):
    assert "[" not in run("in", "--format", "jsonl").err


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (4e6, "1,111 h 6 min")]
)
def test_a_duration_has_two_units_at_most(seconds, said):
    assert duration(seconds) == said


def test_few_images_a_second_are_told_as_few():
    assert [per_second(rate) for rate in (0.123, 9.9, 12.3, 12345)] == [
        "0.12 images/s",
        "9.9 images/s",
        "12 images/s",
        "12,345 images/s",
    ]
