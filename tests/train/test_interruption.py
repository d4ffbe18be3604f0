"""Ctrl-C in any stage: one line, exit code 130, and a finished model that was there before is still complete."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import BIN, CommandResult, Zygote, run_command
from odd_images import drawing

from clf_runtime import folders
from clf_train.models.saved import load_saved_model

OPTIONS = ("--model", "tiny-convnet", "--epochs", "0.1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a finished model in artifacts/."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_command("clf-train", *OPTIONS, cwd=folder).code == 0
    return folder


def train_and_interrupt(finished: Path, folder: Path, change: int) -> CommandResult:
    """Train over a copy of the finished model, and interrupt that at a change of a file."""
    shutil.copytree(finished, folder)
    command = [str(BIN / "clf-train"), *OPTIONS, "--seed", "1", "--overwrite"]
    return Zygote.shared().run(command, folder, dict(os.environ), kill_at=change, kill_with=signal.SIGINT)


def assert_interrupted_without_a_loss(done: CommandResult, folder: Path) -> None:
    assert done.code == 130, done.err
    assert done.err.splitlines()[-1].startswith("clf-train: interrupted")
    assert "Traceback" not in done.err
    load_saved_model(folder / "artifacts")  # complete, with the digest of its spec
    with folders.locked_folder(folder / "artifacts", "the next command"):
        pass  # nobody holds the lock, whose file may still be there
    assert not list((folder / "artifacts").glob(".*"))


@pytest.mark.parametrize("change", [2, 6, 34, 61])
def test_ctrl_c_while_files_are_written_leaves_a_complete_model(finished, tmp_path, change):
    assert_interrupted_without_a_loss(train_and_interrupt(finished, tmp_path / "copy", change), tmp_path / "copy")


@pytest.mark.slow
def test_ctrl_c_at_any_change_of_a_file_leaves_a_complete_model(finished, tmp_path):
    for change in itertools.count(1):
        folder = tmp_path / str(change)
        done = train_and_interrupt(finished, folder, change)
        if done.code == 0:
            break
        assert_interrupted_without_a_loss(done, folder)
    assert change > 30


def test_ctrl_c_at_a_terminal_while_processes_decode_is_one_line(tmp_path):
    """A terminal sends it to the whole process group, so also to the processes that have just been started."""
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        drawing(20, 20).save(tmp_path / "data" / label / "0.png")
        for number in range(1, 300):
            shutil.copy(tmp_path / "data" / label / "0.png", tmp_path / "data" / label / f"{number}.png")
    if not hasattr(os, "killpg"):
        pytest.skip("no process groups here")
    with subprocess.Popen(
        [BIN / "clf-train", "--data", "data", *OPTIONS],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 2 and process.poll() is None:
            pass
        os.killpg(process.pid, signal.SIGINT)
        printed = process.stderr.read()
        assert process.wait(60) == 130
    assert printed.splitlines() == ["clf-train: interrupted"]
    assert not (tmp_path / "artifacts").exists()
