"""`clf-run` as a process: answers on stdout, one line for a fault, and its exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BIN
from rewriting import rewritten

from clf_runtime.diagnostics.selftest import SelfTest
from clf_runtime.onnx_file import SELFTEST_KEY, read

KEYS = ["path", "label", "index", "score", "top", "provider"]


def test_text_gives_path_label_and_probability_in_order(command, home, samples):
    done = command("clf-run", "artifacts/samples", cwd=home)
    assert done.code == 0
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == [f"artifacts/samples/{path.name}" for path in samples]
    assert all(len(row) == 3 and 0 < float(row[2]) <= 1 for row in rows)
    assert sum(row[1] == path.name.partition("-")[0] for row, path in zip(rows, samples, strict=True)) >= 15
    assert re.fullmatch(r"clf-run: 16 images, 0 failed, [\d,.]+ images/s, on CPUExecutionProvider", done.error)


def test_all_formats_say_the_same(command, home, samples):
    files = [f"artifacts/samples/{path.name}" for path in samples]
    given = {kind: command("clf-run", *files, "--top", 3, "--format", kind, cwd=home).out for kind in FORMATS}
    records = [json.loads(line) for line in given["jsonl"].splitlines()]
    assert [record["path"] for record in records] == files
    assert all(list(record) == KEYS and len(record["top"]) == 3 for record in records)
    assert json.loads(given["json"]) == records
    rows = list(csv.DictReader(io.StringIO(given["csv"])))
    assert [(row["path"], row["rank"]) for row in rows] == [(name, str(rank)) for name in files for rank in (1, 2, 3)]
    assert [row["label"] for row in rows] == [each["label"] for record in records for each in record["top"]]
    assert [int(row["index"]) for row in rows[::3]] == [record["index"] for record in records]
    text = [line.split("\t") for line in given["text"].splitlines()]
    assert [row[1::2] for row in text] == [[each["label"] for each in record["top"]] for record in records]


FORMATS = ("text", "jsonl", "json", "csv")


@pytest.fixture
def mixed(tmp_path, samples):
    """Give arguments with a good image first and last, and every fault between."""
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    (tmp_path / "cut.png").write_bytes(samples[0].read_bytes()[:60])
    return [str(samples[0]), "none.jpg", "letter.jpg", "cut.png", "empty", str(samples[1])]


FAULTS = {"none.jpg": "not-found", "letter.jpg": "not-an-image", "cut.png": "damaged", "empty": "empty"}


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_bad_image_is_a_record_in_its_place_and_the_rest_goes_on(command, artifacts, mixed, kind):
    done = command("clf-run", "-a", artifacts, *mixed, "--format", kind)
    assert done.code == 1
    records = json.loads(done.out) if kind == "json" else [json.loads(line) for line in done.out.splitlines()]
    assert [record["path"] for record in records] == mixed
    assert [sorted(record) for record in records[1:5]] == [["error", "path"]] * 4
    assert {record["path"]: record["error"]["kind"] for record in records[1:5]} == FAULTS
    assert done.error.startswith("clf-run: 6 images, 4 failed, ")


def test_in_csv_a_bad_image_is_a_row_of_rank_0(command, artifacts, mixed):
    done = command("clf-run", "-a", artifacts, *mixed, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 1
    assert [row["path"] for row in rows] == mixed
    assert {row["path"]: row["error_kind"] for row in rows if row["rank"] == "0"} == FAULTS


def test_in_text_a_bad_image_is_a_line_on_stderr(command, artifacts, mixed):
    done = command("clf-run", "-a", artifacts, *mixed)
    assert done.code == 1
    assert [line.split("\t")[0] for line in done.out.splitlines()] == [mixed[0], mixed[-1]]
    lines = done.err.splitlines()
    assert [line.split(": ")[1:3] for line in lines[:-1]] == [[path, kind] for path, kind in FAULTS.items()]
    assert "r looks into its folders too" in lines[3]


def test_only_bad_images_are_still_a_run(command, artifacts):
    done = command("clf-run", "-a", artifacts, "none.jpg")
    assert (done.code, done.out) == (1, "")
    assert "clf-run: none.jpg: not-found: no such file or directory" in done.err
    assert command("clf-run", "-a", artifacts, "none.jpg", "--format", "json").out.count("not-found") == 1


def test_a_folder_is_read_by_suffix_sorted_and_recursively_when_asked(command, artifacts, samples, tmp_path):
    for name in ("b.PNG", "a.png", "deep/down/c.png", ".hidden.png", "notes.txt", "folder.png/d.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples[0], tmp_path / "in" / name)
    paths = [line.split("\t")[0] for line in command("clf-run", "-a", artifacts, "in").out.splitlines()]
    assert paths == ["in/a.png", "in/b.PNG"]
    done = command("clf-run", "-a", artifacts, "-r", "in")
    paths = [line.split("\t")[0] for line in done.out.splitlines()]
    assert paths == ["in/a.png", "in/b.PNG", "in/deep/down/c.png", "in/folder.png/d.png"]
    assert done.code == 0


def test_a_folder_that_may_not_be_read_is_a_record(command, artifacts, tmp_path, no_root):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    done = command("clf-run", "-a", artifacts, "closed", "--format", "jsonl", prefix=no_root)
    assert done.code == 1
    assert json.loads(done.out)["error"]["kind"] == "no-permission"


def test_a_image_may_come_on_stdin(command, model, samples):
    done = command("clf-run", "-", "-m", model, "--format", "jsonl", stdin=samples[0].read_bytes())
    record = json.loads(done.out)
    assert (record["path"], record["label"]) == ("-", samples[0].name[0])


@pytest.mark.skipif(sys.platform == "darwin", reason="this file system takes no such names")
def test_names_of_any_bytes_come_out_as_they_went_in(command, artifacts, samples, tmp_path):
    name = os.fsdecode(b"a\xff\tb\nc.png")
    shutil.copy(samples[0], tmp_path / name)
    assert command("clf-run", "-a", artifacts, ".").out.startswith("./a\udcff\\tb\\nc.png\t")
    record = json.loads(command("clf-run", "-a", artifacts, name, "--format", "jsonl").out)
    assert record["path"] == name


def test_the_model_is_found_by_option_environment_or_default(command, home, artifacts, model, samples):
    answers = [
        command("clf-run", samples[0], cwd=home),
        command("clf-run", samples[0], "-a", artifacts),
        command("clf-run", samples[0], "--model", model),
        command("clf-run", samples[0], CLF_ARTIFACTS=str(artifacts)),
    ]
    assert {(each.code, each.out) for each in answers} == {(0, answers[0].out)}


def test_a_closed_pipe_counts_as_done(home):
    command = f"'{BIN}/clf-run' -r artifacts artifacts artifacts --format json | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0\n")
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line_and_exit_code_4(home):
    command = f"'{BIN}/clf-run' artifacts/samples > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.strip().splitlines() == [
        "clf-run: no space left on device; what was there before is still there"
    ]


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "clf-run: interrupted"), (signal.SIGTERM, 143, "")]
)
def test_ctrl_c_ends_with_130_and_one_line_and_a_termination_with_143(home, number, code, said):
    # A pipe that nobody writes to: clf-run waits for its image.
    process = subprocess.Popen(
        [BIN / "clf-run", "-"], cwd=home, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until_it_sleeps(process.pid)
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stderr.read().strip() == said
    process.stdin.close()
    process.stderr.close()


def wait_until_it_sleeps(pid: int) -> None:
    """Wait for a process to wait for its input, with the handler of SIGTERM in place."""
    for _ in range(600):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        if status["State"].startswith("S") and int(status["SigCgt"].strip(), 16) & 1 << (signal.SIGTERM - 1):
            return
        time.sleep(0.1)
    raise AssertionError("it never got there")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Nothing to classify: name an image or a folder"),
        (("x.png", "--top", "0"), "Invalid value for '--top'"),
        (("x.png", "--format", "xml"), "'xml' is not one of 'text', 'jsonl', 'json', 'csv'"),
        (("--nonsense",), "No such option"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what(command, arguments, said):
    done = command("clf-run", *arguments)
    assert done.code == 2
    assert said in done.err


def test_a_model_that_is_not_there_is_refused_in_one_line(command, samples):
    done = command("clf-run", samples[0])
    assert done.code == 3
    assert done.error == "clf-run: artifacts/model.onnx: no such model; clf-export makes one, --model names another"


def test_a_damaged_model_is_refused_in_one_line(command, model, samples, tmp_path):
    broken = bytearray(model.read_bytes())
    broken[len(broken) // 2] ^= 1
    (tmp_path / "bad.onnx").write_bytes(broken)
    for arguments in ((samples[0],), ("--info",), ("--self-test",)):
        done = command("clf-run", "--model", "bad.onnx", *arguments)
        assert done.code == 3
        assert done.error.startswith("clf-run: bad.onnx: refused: its digest does not match its content (damaged")


def test_a_device_that_is_not_there_ends_with_4(command, home, samples):
    done = command("clf-run", samples[0], "--device", "cuda", cwd=home)
    assert done.code == 4
    assert 'pip install "clf-edge[gpu]"' in done.error


def test_the_self_test_passes_and_says_what_differed_in_numbers(command, home):
    done = command("clf-run", "--self-test", cwd=home)
    assert done.code == 0
    assert "passed: 16 images on CPUExecutionProvider, max |difference of a logit| " in done.out
    assert done.out.endswith("tolerance 1e-04, labels flipped 0\n")


def test_a_self_test_can_be_read_by_a_program(command, home):
    content = json.loads(command("clf-run", "--self-test", "--format", "json", cwd=home).out)
    assert content["passed"] is True
    assert content["max_difference"] <= content["tolerance"] == 1e-4
    assert (content["images"], content["flipped"], content["provider"]) == (16, 0, "CPUExecutionProvider")


def test_a_self_test_that_fails_ends_with_3(command, model, tmp_path):
    test = SelfTest.from_json(read(model).metadata[SELFTEST_KEY], "")
    shifted = [type(case)(case.name, case.image, case.logits[::-1]) for case in test.cases]
    rewritten(model, tmp_path / "bad.onnx", **{SELFTEST_KEY: SelfTest(1e-4, tuple(shifted)).to_json()})
    done = command("clf-run", "--self-test", "--model", "bad.onnx")
    assert done.code == 3
    assert "FAILED" in done.out


def test_info_says_what_the_model_is(command, home, model):
    done = command("clf-run", "--info", cwd=home)
    assert done.code == 0
    rows = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert rows["labels"].strip() == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert rows["needs"].strip() == "onnxruntime 1.15 or later (opset 18, IR 8)"
    content = json.loads(command("clf-run", "--info", "--format", "json", "-m", model).out)
    assert content["size_bytes"] == model.stat().st_size
    assert content["spec"]["architecture"] == "small-resnet"
    assert content["parity"]["flipped"] == 0
    assert content["sha256"] in rows["sha256"]
    assert content["here"]["provider"] == "CPUExecutionProvider"
    assert rows["runs on"].strip().startswith("CPUExecutionProvider (")


def test_info_says_why_a_model_does_not_run_here(command, home):
    done = command("clf-run", "--info", "--device", "cuda", cwd=home)
    assert done.code == 0
    assert re.search(
        r"^runs on +nothing here: --device cuda: this onnxruntime .* is built without cuda", done.out, re.M
    )


def test_info_leaves_out_what_a_model_does_not_know(command, model, tmp_path):
    spec = json.loads(read(model).metadata["clf.spec"]) | {"metrics": None, "provenance": None}
    spec["labels"][3] = "a drei"
    rewritten(model, tmp_path / "other.onnx", **{"clf.spec": json.dumps(spec), "clf.parity": "null"})
    done = command("clf-run", "--info", "-m", "other.onnx")
    assert done.code == 0
    rows = [line.split("  ")[0] for line in done.out.splitlines()]
    assert rows == ["model", "size", "sha256", "architecture", "labels", "input", "outputs", "needs", "runs on"]


def test_the_version_is_that_of_the_package(command):
    from clf_runtime import __version__

    assert command("clf-run", "--version").out == f"clf-run, version {__version__}\n"


@pytest.mark.parametrize(("at_once", "printed"), [(True, ""), (False, "done at exit")])
def test_only_a_command_that_says_so_leaves_at_once(at_once, printed):
    code = (
        "import atexit, sys; from clf_runtime import cli, command\n"
        "atexit.register(print, 'done at exit', file=sys.stderr)\n"
        f"command.run(cli.command, leave_at_once={at_once})"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, printed)
    assert done.stdout.startswith("clf-run, version ")


def test_a_shell_gets_its_completion(command):
    done = command("clf-run", _CLF_RUN_COMPLETE="bash_source")
    assert done.code == 0
    assert "_clf_run_completion()" in done.out


def test_threads_change_no_answer(command, home):
    answers = {command("clf-run", "artifacts/samples", "--threads", threads, cwd=home).out for threads in (1, 2, 5)}
    assert len(answers) == 1


def test_a_package_that_is_missing_is_named_with_what_brings_it(samples, model):
    code = "import sys; sys.modules['onnxruntime'] = None; from clf_runtime.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "-m", model, samples[0]], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.strip() == (
        'clf-run: onnxruntime is not installed; pip install "clf-edge[cpu]" (or clf-edge[gpu] for CUDA)'
    )


def test_too_little_memory_is_one_line_and_exit_code_4(model):
    code = (
        "from clf_runtime import onnx_file\n"
        "def read(path): raise MemoryError\n"
        "onnx_file.read = read\n"
        "from clf_runtime.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "-m", model, "--info"], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.strip() == "clf-run: out of memory; what was there before is still there"


def test_a_bug_of_ours_ends_with_70_and_a_traceback(samples, model):
    code = "from clf_runtime import onnx_file; onnx_file.read = None; from clf_runtime.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "-m", model, "--info"], capture_output=True, text=True)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert done.stderr.strip().endswith("this is a bug of clf-edge; please report it with the lines above")
