"""`clf-export` as a process: files in place when proven, and nothing when not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from awkward import drawing
from conftest import BIN

from clf_export.formats import TARGETS


@pytest.fixture
def finished(artifacts, tmp_path) -> Path:
    """A trained model that is not exported yet."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(artifacts / name, folder)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_says_what_it_proved_as_a_table(home):
    lines = (home / "exported.txt").read_text().splitlines()
    assert lines[0].split("  ")[0] == "file"
    assert [line.split()[0].partition("/")[2] for line in lines[1:]] == [target.file for target in TARGETS]
    assert all(" 359" in line and " MB" in line and " ms" in line for line in lines[1:])
    assert [line.split()[-1] for line in lines[1:]] == ["1.15+", "1.15+", "1.15+", "-", "-"]


def test_an_exported_file_is_not_overwritten_unless_asked(command, finished, artifacts):
    shutil.copy(artifacts / "model.onnx", finished)
    done = command("clf-export")
    assert done.code == 3
    assert done.error == "clf-export: artifacts/model.onnx: is already there; --overwrite replaces it"
    assert (finished / "model.onnx").read_bytes() == (artifacts / "model.onnx").read_bytes()
    assert command("clf-export", "--overwrite").code == 0
    assert command("clf-run", "--self-test").code == 0


def test_a_folder_in_a_files_place_is_told_before_anything_is_done(command, finished):
    (finished / "model.onnx").mkdir()
    done = command("clf-export", "--overwrite")
    assert done.code == 3
    assert done.error == "clf-export: artifacts/model.onnx: is a folder, which no file can replace; move it away"
    assert names(finished) == {"model.pt", "model.json", "model.onnx"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.json").unlink(), "artifacts: model.pt without model.json"),
        (lambda folder: shutil.rmtree(folder), "artifacts: no finished model; clf-train makes one"),
        (lambda folder: (folder / "model.pt").unlink(), "model.pt: missing beside model.json"),
        (lambda folder: (folder / "model.json").write_text('{"format": 1'), "its spec is not JSON"),
        (lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe"), "it is not UTF-8 text"),
        (lambda folder: flip(folder / "model.pt"), "model.pt: refused: its digest is not the one in model.json"),
        (lambda folder: edit(folder, "format", 2), "format is 2, expected 1 at most"),
        (lambda folder: edit(folder, "architecture", "resnet-9000"), "model 'resnet-9000': unknown here"),
        (lambda folder: edit(folder, "labels", list("abcdefghij")), "the proof failed"),
        (lambda folder: edit(folder, "labels", list("012345678")), "no state_dict of small-resnet"),
        (lambda folder: edit(folder, "provenance", None), "names no data"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_and_nothing_is_written(command, finished, change, said):
    change(finished)
    before = names(finished) if finished.exists() else None
    done = command("clf-export")
    assert done.code == 3
    assert said in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert (names(finished) if finished.exists() else None) == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(folder: Path, key: str, value: object) -> None:
    content = json.loads((folder / "model.json").read_text())
    content[key] = value
    (folder / "model.json").write_text(json.dumps(content))


def test_a_hostile_pickle_is_not_run(command, finished, tmp_path):
    import hashlib
    import io

    import torch

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    file = io.BytesIO()
    torch.save({"0.weight": Hostile()}, file)
    (finished / "model.pt").write_bytes(file.getvalue())
    content = json.loads((finished / "model.json").read_text())
    content["provenance"]["state_dict_sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    (finished / "model.json").write_text(json.dumps(content))
    done = command("clf-export")
    assert done.code == 3
    assert "model.pt: refused: no state_dict of small-resnet" in done.error
    assert not (tmp_path / "owned").exists()


def test_data_that_is_gone_or_changed_is_refused_and_may_be_named_anew(command, tmp_path):
    for label in ("round", "square"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            drawing(30 + number, 30).rotate(10 * number).save(tmp_path / "data" / label / f"{number}.png")
    assert command("clf-train", "--data", "data", "--epochs", 1).code == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    gone = command("clf-export")
    assert gone.code == 3
    assert "data: no such folder" in gone.error
    assert "--data says where the images of the training are" in gone.error
    done = command("clf-export", "--data", "moved")
    assert done.code == 0, done.err
    assert command("clf-run", "moved", "-r").code == 0
    for path in (tmp_path / "moved" / "round").iterdir():
        drawing(30, 30).save(path)
    changed = command("clf-export", "--data", "moved", "--overwrite")
    assert changed.code == 3
    assert "moved: its held-out images are not those of the training" in changed.error
    assert command("clf-run", "--self-test").code == 0


@pytest.mark.parametrize("when", ["asking PyTorch", "exporting artifacts/model.onnx"])
def test_ctrl_c_leaves_nothing_behind(finished, tmp_path, when):
    before = names(finished)
    with subprocess.Popen([BIN / "clf-export"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert any(when in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert rest.strip().splitlines()[-1] == "clf-export: interrupted"
    assert "Traceback" not in rest
    assert names(finished) == before


def test_without_space_nothing_half_is_left_and_what_was_there_stays(command, finished, artifacts):
    shutil.copy(artifacts / "model.onnx", finished)
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    done = command("clf-export", "--overwrite", prefix=("prlimit", "--fsize=200000"))
    assert done.code == 4
    assert done.err.splitlines()[-1] == (
        "clf-export: artifacts/model.onnx: file too large; what was there before is still there"
    )
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_folder_that_cannot_be_written_to_is_told(command, finished, no_root):
    finished.chmod(0o555)
    done = command("clf-export", prefix=no_root)
    assert done.code == 4
    assert "permission denied; what was there before is still there" in done.err.splitlines()[-1]
    assert names(finished) == {"model.pt", "model.json"}


def test_onnxruntime_is_named_with_what_brings_it(finished, tmp_path):
    import sys

    code = "import sys; sys.modules['onnxruntime'] = None; from clf_export.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr.strip() == (
        'clf-export: onnxruntime is not installed; pip install "clf-edge[cpu]" (or clf-edge[gpu] for CUDA)'
    )
