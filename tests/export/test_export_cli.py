"""`clf-export` as a process: files that passed the parity check, or no files."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import BIN
from odd_images import drawing

from clf_deploy.signing.sign import create_key
from clf_export import exporting
from clf_export.formats import TARGETS, select_targets
from clf_runtime import Classifier, onnx_file
from clf_runtime.errors import MachineError


@pytest.fixture
def finished(artifacts, tmp_path) -> Path:
    """The artifacts folder of a trained model that is not exported yet."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(artifacts / name, folder)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("precision", "installed", "needed"), [("int8", "1.20.1", "1.21"), ("fp16", "1.15.0", "1.16")])
def test_an_onnxruntime_that_cannot_convert_to_a_precision_is_an_error_before_the_export(
    finished, monkeypatch, precision, installed, needed
):
    monkeypatch.setattr(exporting, "runtime_version", lambda: installed)
    with pytest.raises(MachineError) as error:
        exporting.export(finished, select_targets(["onnx"], [precision]))
    assert f"--precision {precision}: needs onnxruntime {needed} or later here, found {installed}" in str(error.value)
    assert names(finished) == {"model.pt", "model.json"}


def test_the_table_has_a_row_for_every_file(home):
    lines = (home / "exported.txt").read_text().splitlines()
    assert re.split("  +", lines[0]) == [
        *("file", "size", "max |Δ logit|", "flipped", "accuracy", "images"),
        *("latency", "eager PyTorch", "onnxruntime"),
    ]
    assert [line.split()[0].partition("/")[2] for line in lines[1:]] == [target.file for target in TARGETS]
    assert all(" 359" in line and " MB" in line and " ms" in line for line in lines[1:])
    assert [line.split()[-1] for line in lines[1:]] == ["1.15+", "1.15+", "1.15+", "-", "-"]


def test_an_exported_file_is_overwritten_only_with_the_option(command, finished, artifacts):
    shutil.copy(artifacts / "model.onnx", finished)
    done = command("clf-export")
    assert done.code == 3
    assert done.error == "clf-export: artifacts/model.onnx: is already there; --overwrite replaces it"
    assert (finished / "model.onnx").read_bytes() == (artifacts / "model.onnx").read_bytes()
    assert command("clf-export", "--overwrite").code == 0
    assert command("clf-run", "--self-test").code == 0


def test_a_signed_export_has_a_serial_and_an_unsigned_one_leaves_no_old_signature(command, finished, tmp_path):
    _, public = create_key(tmp_path / "key.pem", "P-256")
    wrong = command("clf-export", "--sign", "key.pub.pem")
    assert (wrong.code, "no private key in PEM" in wrong.error) == (2, True)
    assert names(finished) == {"model.pt", "model.json"}
    signed = command("clf-export", "--sign", "key.pem", "-f", "onnx", "-f", "torchscript")
    assert signed.code == 0, signed.err
    model = Classifier.load(finished / "model.onnx", require_signature=public)
    assert abs(model.spec.serial - time.time()) < 600
    assert "model.torchscript.pt.sig" not in names(finished)
    again = command("clf-export", "--serial", "17", "--overwrite")
    assert again.code == 0, again.err
    assert onnx_file.read(finished / "model.onnx").spec.serial == 17
    assert "model.onnx.sig" not in names(finished)


def test_a_folder_with_the_name_of_a_file_is_an_error_before_any_work(command, finished):
    (finished / "model.onnx").mkdir()
    done = command("clf-export", "--overwrite")
    assert done.code == 3
    assert done.error == (
        "clf-export: artifacts/model.onnx: is a folder, and a file of this name is to be written; move it away"
    )
    assert names(finished) == {"model.pt", "model.json", "model.onnx"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.json").unlink(), "artifacts: model.pt without model.json"),
        (lambda folder: shutil.rmtree(folder), "artifacts: no finished model; clf-train makes one"),
        (lambda folder: (folder / "model.pt").unlink(), "model.pt: missing beside model.json"),
        (lambda folder: (folder / "model.json").write_text('{"format": 1'), "its spec is not"),
        (lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe"), "model.json: not UTF-8 text"),
        (lambda folder: flip_a_bit(folder / "model.pt"), "model.pt: digest does not match model.json"),
        (lambda folder: edit(folder, "format", 2), "format is 2, expected"),
        (lambda folder: edit(folder, "architecture", "resnet-9000"), "resnet-9000"),
        (lambda folder: edit(folder, "labels", list("abcdefghij")), "the parity check failed"),
        (lambda folder: edit(folder, "labels", list("012345678")), "not a state_dict of small-resnet"),
        (lambda folder: edit(folder, "provenance", None), "names no data"),
    ],
)
def test_a_model_that_cannot_be_exported_is_an_error_and_nothing_is_written(command, finished, change, message):
    change(finished)
    before = names(finished) if finished.exists() else None
    done = command("clf-export")
    assert done.code == 3
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert (names(finished) if finished.exists() else None) == before


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(folder: Path, key: str, value: object) -> None:
    content = json.loads((folder / "model.json").read_text())
    content[key] = value
    (folder / "model.json").write_text(json.dumps(content))


def test_a_hostile_pickle_is_not_run(command, finished, tmp_path):
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
    assert "model.pt: not a state_dict of small-resnet" in done.error
    assert not (tmp_path / "owned").exists()


def test_data_that_has_moved_is_named_with_an_option_and_changed_data_is_an_error(command, tmp_path):
    for label in ("round", "square"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            drawing(30 + number, 30).rotate(10 * number).save(tmp_path / "data" / label / f"{number}.png")
    assert command("clf-train", "--data", "data", "--epochs", 1).code == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    missing = command("clf-export")
    assert missing.code == 3
    assert "data: no such folder" in missing.error
    assert "if the images of the training have moved, add --data" in missing.error
    done = command("clf-export", "--data", "moved")
    assert done.code == 0, done.err
    assert command("clf-run", "moved", "-r").code == 0
    for path in (tmp_path / "moved" / "round").iterdir():
        drawing(30, 30).save(path)
    changed = command("clf-export", "--data", "moved", "--overwrite")
    assert changed.code == 3
    assert "moved: its test split is not that of the training" in changed.error
    assert command("clf-run", "--self-test").code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_where_the_table_cannot_be_printed_the_file_is_finished_and_nothing_else_is_said_of_files(finished, tmp_path):
    done = subprocess.run(["bash", "-c", f"'{BIN}/clf-export' > /dev/full"], cwd=tmp_path, stderr=subprocess.PIPE)
    assert done.returncode == 4
    message = done.stderr.decode().splitlines()[-1]
    assert message == "clf-export: stdout: no space left on device; the printed results are incomplete"
    assert [*json.loads((finished / "export.json").read_text())] == ["model.onnx"]
    assert "model.onnx" in names(finished)


@pytest.mark.parametrize(
    "moment", [pytest.param("running PyTorch", marks=pytest.mark.slow), "exporting artifacts/model.onnx"]
)
def test_ctrl_c_leaves_no_file(finished, tmp_path, moment):
    before = names(finished)
    with subprocess.Popen([BIN / "clf-export"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert any(moment in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert rest.strip().splitlines()[-1] == "clf-export: interrupted"
    assert "Traceback" not in rest
    assert names(finished) == before


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_interrupted_in_a_later_file_the_earlier_one_keeps_its_record_and_is_in_the_table(
    finished, tmp_path, number, code
):
    command = [BIN / "clf-export", "-p", "fp32", "-p", "int8"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        assert any("exporting artifacts/model.int8.onnx" in line for line in process.stderr)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.strip() == ("clf-export: interrupted" if number == signal.SIGINT else "")
    header, row = out.splitlines()
    assert header.startswith("file ")
    assert row.split()[0] == "artifacts/model.onnx"
    assert names(finished) == {"model.pt", "model.json", "model.onnx", "export.json", "report.html"}
    assert [*json.loads((finished / "export.json").read_text())] == ["model.onnx"]
    assert "Parity check of model.onnx" in (finished / "report.html").read_text()


def test_without_a_terminal_each_stage_is_a_line_and_each_file_has_the_time_left(command, finished):
    done = command("clf-export")
    assert done.code == 0
    reference, export, following = done.err.splitlines()
    assert reference == "running PyTorch on the test split (359 images, test 20%)"
    assert re.fullmatch(r"exporting artifacts/model.onnx and checking its parity, about .* s left", export)
    assert following.startswith("next: ")


def test_on_a_full_disk_no_partial_file_is_left_and_earlier_files_stay(command, finished, artifacts):
    shutil.copy(artifacts / "model.onnx", finished)
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    done = command("clf-export", "--overwrite", prefix=("prlimit", "--fsize=200000"))
    assert done.code == 4
    assert done.err.splitlines()[-1].startswith("clf-export: artifacts/model.onnx: file too large; ")
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_folder_without_write_permission_is_an_error(command, finished, no_root):
    finished.chmod(0o555)
    done = command("clf-export", prefix=no_root)
    assert done.code == 4
    assert "permission denied; " in done.err.splitlines()[-1]
    assert names(finished) == {"model.pt", "model.json"}


def test_a_missing_onnxruntime_is_an_error_that_names_the_extra(tmp_path):
    code = "import sys; sys.modules['onnxruntime'] = None; from clf_export.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr.strip() == (
        'clf-export: onnxruntime is not installed; pip install "clf-edge[cpu]" (or clf-edge[gpu] for CUDA)'
    )


def test_a_float32_export_does_not_import_the_quantizer(finished, tmp_path):
    code = """
import sys
from pathlib import Path
from clf_export.exporting import export
from clf_export.formats import select_targets
export(Path("artifacts"), select_targets(["onnx"], ["fp32"]))
print(*(name for name in sys.modules if name.startswith(("onnxruntime.quantization", "onnxruntime.transformers"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert "model.onnx" in names(finished)
