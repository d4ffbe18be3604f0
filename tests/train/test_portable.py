"""No file of a model names the folders, the user or the host of the machine that it was trained on."""

from __future__ import annotations

import json
import os
import shlex

import pytest
from conftest import run_command
from odd_images import drawing
from privacy import assert_nothing_private

from clf_train.portable import portable_command, portable_member, portable_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("digits", "digits"),
        ("../photos", "../photos"),
        ("{cwd}/photos/cats.csv", "photos/cats.csv"),
        ("{cwd}", "."),
        ("/home/me/photos/", "photos"),
        ("C:\\Users\\me\\photos", "photos"),
        ("/", ""),
    ],
)
def test_a_path_is_recorded_without_the_folders_outside_the_current_one(tmp_path, monkeypatch, path, expected):
    monkeypatch.chdir(tmp_path)
    assert portable_path(path.replace("{cwd}", str(tmp_path))) == expected


def test_a_command_is_recorded_with_portable_paths():
    arguments = [
        "-d",
        "/home/me/my photos",
        "-a/home/me/out",
        "--weights=/home/me/w.pth",
        "--model",
        "a:b",
        "--epochs",
        "2",
    ]
    expected = "clf-train -d 'my photos' -aout --weights=w.pth --model a:b --epochs 2"
    assert portable_command("clf-train", arguments) == expected


@pytest.mark.parametrize(
    ("path", "data", "expected"),
    [
        ("/home/me/photos/cats/1.jpg", "/home/me/photos", "photos/cats/1.jpg"),
        ("/home/me/cats/1.jpg", "/home/me/table.csv", "me/cats/1.jpg"),
        ("/media/1.jpg", "/home/me/table.csv", "1.jpg"),
        ("photos/1.jpg", "photos", "photos/1.jpg"),
        ("./cats/1.jpg", ".", "./cats/1.jpg"),
        ("/home/me/a/0.tar/1.jpg", "/home/me/{a,b}/*.tar", "me/a/0.tar/1.jpg"),
    ],
)
def test_an_image_keeps_its_place_in_the_data(path, data, expected):
    assert portable_member(path, data) == expected


def test_no_exported_file_names_the_machine(artifacts):
    assert_nothing_private(artifacts)


def test_training_on_an_absolute_path_records_only_its_name(tmp_path):
    data, work = tmp_path / "alice-f3b1" / "photos", tmp_path / "work"
    work.mkdir()
    for label in ("cat", "dog"):
        for number in range(12):
            path = data / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing(20 + number, 20 if label == "cat" else 40).save(path)
    (data / "cat/bad.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    options = ("--model", "tiny-convnet", "--size", "16", "--epochs", "1", "--tensorboard", "--skip-unreadable")
    trained = run_command("clf-train", "-d", data, *options, cwd=work)
    assert trained.code == 0, trained.err
    assert_nothing_private(work / "artifacts", "alice-f3b1", str(tmp_path))
    provenance = json.loads((work / "artifacts/model.json").read_text())["provenance"]
    assert provenance["data"] == "photos"
    assert provenance["command"].startswith("clf-train -d photos --model")
    assert "photos/cat/bad.png" in (work / "artifacts/unreadable.csv").read_text()
    program, *arguments = shlex.split(trained.out.rpartition("next: ")[2])
    assert (program, arguments[:2]) == ("clf-export", ["--data", str(data)])
    without = run_command("clf-export", cwd=work)
    assert without.code == 3
    assert "if the images of the training have moved, add --data" in without.error
    exported = run_command(program, *arguments, "-f", "torchscript", "-f", "pt2", cwd=work)
    assert exported.code == 0, exported.err
    assert_nothing_private(work / "artifacts", "alice-f3b1", str(tmp_path))


def test_names_that_are_not_utf_8_do_not_end_a_training(tmp_path):
    data = tmp_path / os.fsdecode(b"photos\xff")
    for label in ("cat", "dog"):
        (data / label).mkdir(parents=True)
        for number in range(6):
            drawing(10 + number, 10).save(data / label / os.fsdecode(b"%d\xfe.png" % number))
    options = ("--model", "tiny-convnet", "--size", "16", "--epochs", "0.2")
    trained = run_command("clf-train", "-d", data, *options, cwd=tmp_path)
    assert trained.code == 0, trained.err
    provenance = json.loads((tmp_path / "artifacts/model.json").read_text())["provenance"]
    assert provenance["data"] == "photos\\xff"
    assert provenance["command"].startswith("clf-train -d 'photos\\xff' --model")
