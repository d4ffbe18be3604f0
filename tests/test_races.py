"""Two commands that write the same folder at the same time: one wins, and the other names it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import BIN

from clf_train.models.saved import load_saved_model

TRAIN = ("clf-train", "--overwrite", "--epochs", "1", "--model", "tiny-convnet")
EXPORT = ("clf-export", "--overwrite", "-f", "torchscript")


def race(command: tuple[str, ...], folder: Path) -> bool:
    """Run a command twice at the same time; return whether they met, rather than ran one after the other."""
    racers = [
        subprocess.Popen(
            [BIN / command[0], *command[1:]], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ended = [(racer.pid, *racer.communicate(), racer.returncode) for racer in racers]
    assert {code for *_, code in ended} <= {0, 4}, ended
    winners = [process for process, *_, code in ended if code == 0]
    assert winners
    for _, _, err, code in ended:
        if code == 4:
            found = re.search(rf"artifacts: {command[0]} \(process (\d+)\) writes this folder; wait until", err)
            assert found, err
            assert int(found[1]) == winners[0]
    load_saved_model(folder / "artifacts")
    assert not [path for path in (folder / "artifacts").iterdir() if path.name.startswith(".")]
    return len(winners) == 1


@pytest.mark.parametrize(
    ("command", "races"),
    [
        (TRAIN, 1),
        pytest.param(TRAIN, 100, marks=pytest.mark.slow),
        pytest.param(EXPORT, 100, marks=pytest.mark.slow),
    ],
)
def test_of_two_commands_in_one_folder_one_wins_and_the_other_names_it(artifacts, tmp_path, command, races):
    shutil.copytree(artifacts, tmp_path / "artifacts")
    met = sum(race(command, tmp_path) for _ in range(races))
    print(f"{command[0]}: {met} of {races} met")
    assert met or races == 1
