"""`clf-run` as a process: results on stdout, one line per error, and the exit codes."""

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
from pathlib import Path

import pytest
from conftest import BIN
from rewriting import rewritten

from clf_runtime.command import _terminate
from clf_runtime.diagnostics.info import Placement
from clf_runtime.diagnostics.selftest import SelfTest
from clf_runtime.onnx_file import SELFTEST_KEY, read

KEYS = ["path", "label", "index", "score", "top", "provider"]


def test_text_contains_path_label_and_probability_in_order(command, home, samples):
    done = command("clf-run", "artifacts/samples", cwd=home)
    assert done.code == 0
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == [f"artifacts/samples/{path.name}" for path in samples]
    assert all(len(row) == 3 and 0 < float(row[2]) <= 1 for row in rows)
    assert sum(row[1] == path.name.partition("-")[0] for row, path in zip(rows, samples, strict=True)) >= 15
    assert re.fullmatch(r"clf-run: 16 images, 0 failed, [\d,.]+ images/s, on CPUExecutionProvider", done.error)


def test_all_formats_contain_the_same_results(command, home, samples):
    files = [f"artifacts/samples/{path.name}" for path in samples]
    output = {kind: command("clf-run", *files, "--top", 3, "--format", kind, cwd=home).out for kind in FORMATS}
    records = [json.loads(line) for line in output["jsonl"].splitlines()]
    assert [record["path"] for record in records] == files
    assert all(list(record) == KEYS and len(record["top"]) == 3 for record in records)
    assert json.loads(output["json"]) == records
    rows = list(csv.DictReader(io.StringIO(output["csv"])))
    assert [(row["path"], row["rank"]) for row in rows] == [(name, str(rank)) for name in files for rank in (1, 2, 3)]
    assert [row["label"] for row in rows] == [score["label"] for record in records for score in record["top"]]
    assert [int(row["index"]) for row in rows[::3]] == [record["index"] for record in records]
    assert all(row["index"] == row["label"] for row in rows)  # the labels of the digits
    text = [line.split("\t") for line in output["text"].splitlines()]
    assert [row[1::2] for row in text] == [[score["label"] for score in record["top"]] for record in records]


FORMATS = ("text", "jsonl", "json", "csv")


@pytest.fixture
def mixed(tmp_path, samples):
    """Arguments: a good image first and last, and images that fail between them."""
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    (tmp_path / "cut.png").write_bytes(samples[0].read_bytes()[:60])
    return [str(samples[0]), "none.jpg", "letter.jpg", "cut.png", "empty", str(samples[1])]


FAILURES = {"none.jpg": "not-found", "letter.jpg": "not-an-image", "cut.png": "damaged", "empty": "empty"}


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_bad_image_is_a_record_in_its_place_and_the_next_image_still_runs(command, artifacts, mixed, kind):
    done = command("clf-run", "-a", artifacts, *mixed, "--format", kind)
    assert done.code == 1
    records = json.loads(done.out) if kind == "json" else [json.loads(line) for line in done.out.splitlines()]
    assert [record["path"] for record in records] == mixed
    assert [sorted(record) for record in records[1:5]] == [["error", "path"]] * 4
    assert {record["path"]: record["error"]["kind"] for record in records[1:5]} == FAILURES
    assert done.error.startswith("clf-run: 6 images, 4 failed, ")


def test_in_csv_a_bad_image_is_a_row_of_rank_0(command, artifacts, mixed):
    done = command("clf-run", "-a", artifacts, *mixed, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 1
    assert [row["path"] for row in rows] == mixed
    assert {row["path"]: row["error_kind"] for row in rows if row["rank"] == "0"} == FAILURES


def test_in_text_a_bad_image_is_a_line_on_stderr(command, artifacts, mixed):
    done = command("clf-run", "-a", artifacts, *mixed)
    assert done.code == 1
    assert [line.split("\t")[0] for line in done.out.splitlines()] == [mixed[0], mixed[-1]]
    lines = done.err.splitlines()
    assert [line.split(": ")[1:3] for line in lines[:-1]] == [[path, kind] for path, kind in FAILURES.items()]
    assert "use -r to include its subfolders" in lines[3]


def test_a_run_with_bad_images_only_ends_with_1(command, artifacts):
    done = command("clf-run", "-a", artifacts, "none.jpg")
    assert (done.code, done.out) == (1, "")
    assert "clf-run: none.jpg: not-found: no such file or directory" in done.err
    assert command("clf-run", "-a", artifacts, "none.jpg", "--format", "json").out.count("not-found") == 1


def test_a_folder_is_read_by_suffix_in_order_and_recursively_on_request(command, artifacts, samples, tmp_path):
    for name in ("b.PNG", "a.png", "deep/down/c.png", ".hidden.png", "notes.txt", "folder.png/d.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples[0], tmp_path / "in" / name)
    paths = [line.split("\t")[0] for line in command("clf-run", "-a", artifacts, "in").out.splitlines()]
    assert paths == ["in/a.png", "in/b.PNG"]
    done = command("clf-run", "-a", artifacts, "-r", "in")
    paths = [line.split("\t")[0] for line in done.out.splitlines()]
    assert paths == ["in/a.png", "in/b.PNG", "in/deep/down/c.png", "in/folder.png/d.png"]
    assert done.code == 0


def test_without_a_result_there_is_no_rate(command, artifacts, tmp_path):
    (tmp_path / "empty.png").touch()
    done = command("clf-run", "empty.png", "-a", artifacts)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "clf-run: 1 image, 1 failed, on CPUExecutionProvider"


def test_a_folder_that_may_not_be_read_is_a_failure(command, artifacts, tmp_path, no_root):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    done = command("clf-run", "-a", artifacts, "closed", "--format", "jsonl", prefix=no_root)
    assert done.code == 1
    assert json.loads(done.out)["error"]["kind"] == "no-permission"


def test_an_image_may_come_on_stdin(command, model, samples):
    done = command("clf-run", "-", "-m", model, "--format", "jsonl", stdin=samples[0].read_bytes())
    record = json.loads(done.out)
    assert (record["path"], record["label"]) == ("-", samples[0].name[0])


@pytest.mark.skipif(sys.platform == "darwin", reason="this file system does not allow such names")
def test_names_of_any_bytes_are_printed_unchanged(command, artifacts, samples, tmp_path):
    name = os.fsdecode(b"a\xff\tb\nc.png")
    shutil.copy(samples[0], tmp_path / name)
    assert command("clf-run", "-a", artifacts, ".").out.startswith("./a\udcff\\tb\\nc.png\t")
    record = json.loads(command("clf-run", "-a", artifacts, name, "--format", "jsonl").out)
    assert record["path"] == name


def test_the_model_is_found_by_option_environment_or_default(command, home, artifacts, model, samples):
    runs = [
        command("clf-run", samples[0], cwd=home),
        command("clf-run", samples[0], "-a", artifacts),
        command("clf-run", samples[0], "--model", model),
        command("clf-run", samples[0], CLF_ARTIFACTS=str(artifacts)),
    ]
    assert {(run.code, run.out) for run in runs} == {(0, runs[0].out)}


def test_a_closed_output_pipe_is_success(home):
    command = f"'{BIN}/clf-run' -r artifacts artifacts artifacts --format json | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0\n")
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("setting", ["", "PYTHONUNBUFFERED=1"])
def test_a_full_disk_is_one_line_and_exit_code_4(home, setting):
    command = f"{setting} '{BIN}/clf-run' artifacts/samples > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.strip().splitlines() == [
        "clf-run: stdout: no space left on device; the printed results are incomplete"
    ]


def test_a_closed_stdout_is_one_line_and_exit_code_4(home):
    command = f"'{BIN}/clf-run' artifacts/samples >&-"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr == "clf-run: stdout: it is closed; the printed results are incomplete\n"


def test_results_go_to_a_file_with_all_streams_closed(home, tmp_path):
    output = tmp_path / "results.csv"
    command = f"'{BIN}/clf-run' artifacts/samples --format csv --output '{output}' <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], cwd=home).returncode == 0
    assert len(output.read_text().splitlines()) == 17


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&- 2>&-"])
def test_results_do_not_depend_on_stderr(home, redirection):
    command = f"'{BIN}/clf-run' none.png artifacts/samples {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (1, 16, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>/dev/full >/dev/full", "<&- >&- 2>&-"])
def test_a_usage_error_that_nobody_can_read_still_ends_with_2(home, redirection):
    command = f"'{BIN}/clf-run' --top 0 {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of this kind")
def test_results_do_not_depend_on_a_terminal_that_is_closed_meanwhile(home, samples, tmp_path):
    controller, terminal = os.openpty()
    command = [BIN / "clf-run", samples[0], "none.png", "-", samples[1], "-o", tmp_path / "results.txt"]
    with subprocess.Popen(
        [*command, "--threads", "1", "--batch-size", "1"], cwd=home, stdin=subprocess.PIPE, stderr=terminal
    ) as process:
        os.close(terminal)
        assert b"1 of 4 images" in os.read(controller, 1000)
        os.close(controller)
        process.communicate(samples[2].read_bytes(), timeout=60)
    assert process.returncode == 1
    assert len((tmp_path / "results.txt").read_text().splitlines()) == 3


def test_a_line_break_in_a_path_does_not_break_a_line_of_output(command, artifacts, model, tmp_path):
    name = "a\nb\x1b[2J\rc"
    shutil.copy(model, tmp_path / f"{name}.onnx")
    for option in ("--model", "--artifacts"):
        done = command("clf-run", "x.png", option, f"no {name}")
        assert done.code == 3
        assert done.error.startswith("clf-run: no a\\nb\\x1b[2J\\rc")
    for option in ("--output", "--annotate"):
        done = command("clf-run", ".", "-m", model, option, f"{name}.onnx")
        assert done.code == 2
        assert done.error.startswith(f"clf-run: {option} a\\nb\\x1b[2J\\rc.onnx")
    done = command("clf-run", "--self-test", "-m", f"{name}.onnx")
    assert done.out.startswith("a\\nb\\x1b[2J\\rc.onnx: passed")
    assert len(done.out.splitlines()) == 1
    assert "--a\\nb\\x1b[2J\\rc" in command("clf-run", f"--{name}").err.splitlines()[-1]


def test_escape_sequences_in_labels_and_names_do_not_reach_the_terminal(command, model, samples, tmp_path):
    spec = json.loads(read(model).metadata["clf.spec"])
    spec["labels"] = [f"\x1b[2J{label}\x9b" for label in spec["labels"]]
    test = SelfTest.from_json(read(model).metadata[SELFTEST_KEY], "")
    cases = tuple(type(case)("\x1b[2Jname", case.image, case.logits) for case in test.cases)
    metadata = {"clf.spec": json.dumps(spec), SELFTEST_KEY: SelfTest(test.tolerance, cases).to_json()}
    rewritten(model, tmp_path / "odd.onnx", **metadata)
    name = "a\x1b]0;title\x07.png"
    shutil.copy(samples[0], tmp_path / name)
    (tmp_path / "b\x1b.png").write_text("Dear Sir")
    runs = [command("clf-run", *what, "-m", "odd.onnx") for what in ((".",), ("--info",), ("--self-test",))]
    for done in runs:
        assert not set(done.out + done.err) & {"\x1b", "\x07", "\x9b"}
    assert runs[0].out.startswith("./a\\x1b]0;title\\x07.png\t\\x1b[2J")
    assert "./b\\x1b.png: not-an-image" in runs[0].err


@pytest.mark.skipif(sys.platform == "darwin", reason="this file system does not allow such names")
def test_a_csv_row_stays_one_row_whatever_the_name(command, model, samples, tmp_path):
    names = ["=1+1.png", "a\rb.png", "c\nd.png", 'e"f.png']
    for name in names:
        shutil.copy(samples[0], tmp_path / name)
    done = command("clf-run", *names, "-m", model, "--format", "csv", "-o", "results.csv")
    assert done.code == 0
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names
    assert '"=1+1.png","1"' in (tmp_path / "results.csv").read_text()


def test_links_in_a_circle_are_a_usage_error(command, model, samples, tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    for option, message in (("--output", "its links lead in a circle"), ("--annotate", "a link that leads nowhere")):
        done = command("clf-run", samples[0], "-m", model, option, "circle")
        assert done.code == 2
        assert message in done.error
    assert command("clf-run", "circle", "-m", model, "--annotate", "out").code == 1


@pytest.mark.parametrize("redirection", [">&-", "> /dev/full"])
def test_a_command_that_shuts_python_down_also_ends_with_4_if_stdout_fails(home, redirection):
    command = f"'{BIN}/clf-bench' --rounds 1 --seconds 0 {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("signal_number", "code", "message"), [(signal.SIGINT, 130, "clf-run: interrupted"), (signal.SIGTERM, 143, "")]
)
def test_ctrl_c_ends_with_130_and_one_line_and_sigterm_with_143(home, signal_number, code, message):
    # After two results it waits for the image on stdin, a pipe that nobody writes to.
    arguments = ["artifacts/samples/0-1.png", "artifacts/samples/1-1.png", "-", "--threads", "1", "--batch-size", "1"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([BIN / "clf-run", *arguments], cwd=home, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    for _ in range(2):
        assert process.stdout.readline().startswith("artifacts/samples/")
    process.send_signal(signal_number)
    stderr = process.communicate(timeout=60)[1]
    assert (process.returncode, stderr.strip()) == (code, message)


def test_a_command_in_the_background_ignores_ctrl_c(home, tmp_path):
    """A shell without job control starts it so."""
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise MemoryError\n")
    script = f"trap '' INT; PYTHONPATH='{tmp_path}' exec '{BIN}/clf-run' artifacts/samples"
    done = subprocess.run(["bash", "-c", script], cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (4, "clf-run: out of memory; existing files are unchanged\n")


def test_the_handler_of_sigterm_raises_an_exception_so_that_temporary_files_are_removed():
    # In this process, since coverage sometimes misses a handler that interrupts its own tracer.
    with pytest.raises(SystemExit) as stopped:
        _terminate(signal.SIGTERM, None)
    assert stopped.value.code == 143


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "No images: name an image or a folder"),
        (("x.png", "--top", "0"), "Invalid value for '--top'"),
        (("x.png", "--format", "xml"), "'xml' is not one of 'text', 'jsonl', 'json', 'csv'"),
        (("--nonsense",), "No such option"),
    ],
)
def test_a_usage_error_ends_with_2_and_names_the_mistake(command, arguments, message):
    done = command("clf-run", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_missing_model_is_an_error_in_one_line(command, samples):
    done = command("clf-run", samples[0])
    assert done.code == 3
    assert done.error == (
        "clf-run: artifacts/model.onnx: model not found; create it with clf-export, or name another one with --model"
    )


def test_a_damaged_model_is_an_error_in_one_line(command, model, samples, tmp_path):
    broken = bytearray(model.read_bytes())
    broken[len(broken) // 2] ^= 1
    (tmp_path / "bad.onnx").write_bytes(broken)
    for arguments in ((samples[0],), ("--info",), ("--self-test",)):
        done = command("clf-run", "--model", "bad.onnx", *arguments)
        assert done.code == 3
        assert done.error.startswith("clf-run: bad.onnx: digest does not match its content (damaged")


def test_a_device_that_does_not_work_ends_with_4(command, home, samples):
    done = command("clf-run", samples[0], "--device", "cuda", cwd=home)
    assert done.code == 4
    assert 'pip install "clf-edge[gpu]"' in done.error


def test_the_self_test_passes_and_prints_the_largest_difference(command, home):
    done = command("clf-run", "--self-test", cwd=home)
    assert done.code == 0
    assert "passed: 16 images on CPUExecutionProvider, max |difference of a logit| " in done.out
    assert done.out.endswith("tolerance 1e-04, labels flipped 0\n")


def test_the_self_test_prints_json_on_request(command, home):
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


def test_info_describes_the_model(command, home, model):
    done = command("clf-run", "--info", cwd=home)
    assert done.code == 0
    rows = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert rows["labels"].strip() == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert rows["needs"].strip() == "onnxruntime 1.15 or later (opset 18, IR 8)"
    content = json.loads(command("clf-run", "--info", "--format", "json", "-m", model).out)
    assert content["size_bytes"] == model.stat().st_size
    assert content["spec"]["architecture"] == "small-resnet"
    assert content["parity"]["flipped"] == 0
    assert rows["parity"].strip().endswith(", labels flipped 0")
    assert content["sha256"] in rows["sha256"]
    assert content["runs_on"]["provider"] == "CPUExecutionProvider"
    assert rows["runs on"].strip().startswith("CPUExecutionProvider (")


def test_info_shows_why_a_model_does_not_run_on_a_device(command, home):
    done = command("clf-run", "--info", "--device", "cuda", cwd=home)
    assert done.code == 0
    assert re.search(
        r"^runs on +nothing on this machine: --device cuda: onnxruntime .* does not include cuda", done.out, re.M
    )


def test_info_names_the_provider_if_onnxruntime_does_not_report_nodes():
    # As before onnxruntime 1.24.
    assert str(Placement("CPUExecutionProvider", None, None)).startswith(
        "CPUExecutionProvider (nodes are reported since"
    )
    assert str(Placement("CPUExecutionProvider", None, "no GPU")).endswith("; no GPU")


def test_info_omits_what_is_unknown(command, model, tmp_path):
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


@pytest.mark.parametrize(("immediately", "printed"), [(True, ""), (False, "done at exit")])
def test_only_a_command_that_requests_it_skips_what_is_done_at_exit(immediately, printed):
    code = (
        "import atexit, sys; from clf_runtime import cli, command\n"
        "atexit.register(print, 'done at exit', file=sys.stderr)\n"
        f"command.execute(cli.command, exit_immediately={immediately})"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, printed)
    assert done.stdout.startswith("clf-run, version ")


@pytest.mark.parametrize(
    ("number", "code", "printed"), [(signal.SIGINT, 130, "clf: interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_a_signal_that_arrives_where_python_ignores_exceptions_is_not_lost(number, code, printed):
    script = f"""
import signal, time, weakref
import click
from clf_runtime.command import execute

class Thing:
    def __del__(self):
        raise ValueError("another error that is ignored")

@click.command("clf")
def command():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal({int(number)}))
    del thing
    while True:  # without pthread_kill, the signal does not end a wait
        time.sleep(60 if hasattr(signal, "pthread_kill") else 0.01)

execute(command)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == code
    shown = done.stderr.splitlines(keepends=True)
    assert "ValueError: another error that is ignored\n" in shown
    assert "".join(shown[shown.index("ValueError: another error that is ignored\n") + 1 :]) == printed
    assert "KeyboardInterrupt" not in done.stderr


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
@pytest.mark.parametrize(
    ("cause", "code", "printed"), [("KeyboardInterrupt()", 130, "clf: interrupted\n"), ("SystemExit(143)", 143, "")]
)
def test_a_signal_that_becomes_the_cause_of_an_error_ends_as_any_other(error, cause, code, printed):
    script = f"""
import click
from clf_runtime.command import execute

@click.command("clf")
def command():
    raise {error}("initialization failed") from {cause}

execute(command)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, printed)


def test_shell_completion_is_available(command):
    done = command("clf-run", _CLF_RUN_COMPLETE="bash_source")
    assert done.code == 0
    assert "_clf_run_completion()" in done.out


def test_the_number_of_threads_does_not_change_results(command, home):
    outputs = {command("clf-run", "artifacts/samples", "--threads", threads, cwd=home).out for threads in (1, 2, 5)}
    assert len(outputs) == 1


def test_a_missing_package_is_named_with_the_extra_that_installs_it(samples, model):
    code = "import sys; sys.modules['onnxruntime'] = None; from clf_runtime.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "-m", model, samples[0]], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.strip() == (
        'clf-run: onnxruntime is not installed; pip install "clf-edge[cpu]" (or clf-edge[gpu] for CUDA)'
    )


def test_a_lack_of_memory_is_one_line_and_exit_code_4(model):
    code = (
        "from clf_runtime import onnx_file\n"
        "def read(path): raise MemoryError\n"
        "onnx_file.read = read\n"
        "from clf_runtime.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "-m", model, "--info"], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.strip() == "clf-run: out of memory; existing files are unchanged"


def test_a_bug_ends_with_70_and_a_traceback(samples, model):
    code = "from clf_runtime import onnx_file; onnx_file.read = None; from clf_runtime.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "-m", model, "--info"], capture_output=True, text=True)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert done.stderr.strip().endswith("this is a bug in clf-edge; please report it with the lines above")
