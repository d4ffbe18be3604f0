"""Two commands that write the same folder at the same time: one wins, and the other names it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import BIN, CommandResult, Zygote

from clf_train.models.saved import load_saved_model

pytestmark = pytest.mark.slow

RACES = 100
TRAIN = ("clf-train", "--overwrite", "--epochs", "1", "--model", "tiny-convnet")
EXPORT = ("clf-export", "--overwrite", "-f", "torchscript")


@pytest.fixture(scope="module")
def racers() -> Iterator[list[Zygote]]:
    """Two processes that start a command within milliseconds, without its imports."""
    zygotes = [Zygote(), Zygote()]
    yield zygotes
    for zygote in zygotes:
        zygote.close()


def race(racers: list[Zygote], command: tuple[str, ...], folder: Path) -> bool:
    """Run a command twice at the same time; return whether they met, rather than ran one after the other."""

    def run(racer: Zygote) -> CommandResult:
        return racer.run([str(BIN / command[0]), *command[1:]], folder, dict(os.environ))

    with ThreadPoolExecutor(2) as pool:
        ended = list(zip(pool.map(run, racers), racers, strict=True))
    assert {done.code for done, _ in ended} <= {0, 4}, ended
    winners = [racer.last_process for done, racer in ended if done.code == 0]
    assert winners, ended
    for done, _ in ended:
        if done.code == 4:
            found = re.search(rf"artifacts: {command[0]} \(process (\d+)\) writes this folder; wait until", done.err)
            assert found, done.err
            assert int(found[1]) == winners[0]
    load_saved_model(folder / "artifacts")
    assert not [path for path in (folder / "artifacts").iterdir() if path.name.startswith(".")]
    return len(winners) == 1


@pytest.mark.parametrize("command", [TRAIN, EXPORT])
def test_of_two_commands_in_one_folder_one_wins_and_the_other_names_it(artifacts, racers, tmp_path, command):
    shutil.copytree(artifacts, tmp_path / "artifacts")
    met = sum(race(racers, command, tmp_path) for _ in range(RACES))
    print(f"{command[0]}: {met} of {RACES} met")
    assert met
