"""`clf-run --doctor`: what a machine has, what prevents a model from running on it, and how to fix that."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from installing import installed
from onnx import TensorProto, helper, numpy_helper
from rewriting import rewritten

from clf_runtime import MachineError, machine, session
from clf_runtime.diagnostics import doctor
from clf_runtime.diagnostics.selftest import SelfTest
from clf_runtime.onnx_file import SELFTEST_KEY, read
from clf_runtime.session import probe_device


def rows(out: str) -> dict[str, str]:
    """Return the findings by name: status, message and remedy."""
    findings: dict[str, str] = {}
    name = ""
    for line in out.splitlines()[:-1]:
        status, text = line[:5].strip(), line[7:]
        if status:
            name, _, message = text.partition(" ")
            findings[name] = f"{status}: {message.strip()}"
        else:
            findings[name] += f" {text.strip()}"
    return findings


def test_without_a_problem_the_exit_code_is_0(command, home):
    done = command("clf-run", "--doctor", cwd=home)
    assert (done.code, done.err) == (0, "")
    findings = rows(done.out)
    assert list(findings)[:9] == (
        ["clf-edge", "numpy", "Pillow", "onnxruntime", "processor", "threads", "memory", "model", "cpu"]
    )
    assert findings["model"].startswith("ok: artifacts/model.onnx: small-resnet, 10 labels, ")
    assert findings["cpu"].startswith(
        "ok: works: passed: 16 images on CPUExecutionProvider, max |difference of a logit|"
    )
    assert done.out.endswith("no problems found\n")


def test_without_a_model_everything_else_is_checked(command):
    done = command("clf-run", "--doctor", "--format", "json")
    assert done.code == 0
    content = json.loads(done.out)
    assert content["ok"] is True
    findings = {finding["name"]: finding for finding in content["findings"]}
    assert findings["model"] == {
        "name": "model",
        "message": "artifacts/model.onnx: not found, so devices are tried with a small graph",
        "status": "note",
        "remedy": "create one with clf-export",
        "exit_code": 0,
    }
    assert (findings["cpu"]["status"], findings["cpu"]["message"]) == ("ok", "works")


@pytest.mark.parametrize("name", ["none.onnx", "cut.onnx"])
def test_a_missing_or_damaged_model_is_a_problem_with_exit_code_3(command, model, tmp_path, name):
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:-1000])
    done = command("clf-run", "--doctor", "-m", name)
    assert done.code == 3
    findings = rows(done.out)
    assert findings["model"].startswith(f"wrong: {name}: ")
    assert "clf-export" in findings["model"]
    assert findings["cpu"] == "ok: works"
    assert done.out.endswith("1 problem found\n")


def test_a_failed_self_test_is_a_problem_with_exit_code_3(command, model, tmp_path):
    test = SelfTest.from_json(read(model).metadata[SELFTEST_KEY], "")
    shifted = [type(case)(case.name, case.image, case.logits[::-1]) for case in test.cases]
    rewritten(model, tmp_path / "bad.onnx", **{SELFTEST_KEY: SelfTest(1e-4, tuple(shifted)).to_json()})
    done = command("clf-run", "--doctor", "-m", "bad.onnx")
    assert done.code == 3
    assert rows(done.out)["cpu"].startswith("wrong: does not work: FAILED: 16 images")


def test_a_named_device_that_does_not_work_is_a_problem_with_exit_code_4(command, home):
    done = command("clf-run", "--doctor", "--device", "cuda", cwd=home)
    assert done.code == 4
    findings = rows(done.out)
    assert findings["cuda"].startswith("wrong: does not work: onnxruntime ")
    assert findings["cuda"].endswith('then pip install "clf-edge[gpu]"')
    assert findings["cpu"].startswith("ok: works")


def test_an_unknown_device_is_a_problem_with_exit_code_2(command, home):
    done = command("clf-run", "--doctor", "--device", "tpu", cwd=home)
    assert done.code == 2
    assert rows(done.out)["tpu"].startswith("wrong: does not work: unknown device")


def test_a_provider_that_does_not_work_is_a_note_unless_it_is_named(command, home, tmp_path):
    # As with the GPU wheel on a machine without a GPU.
    (tmp_path / "sitecustomize.py").write_text(
        "import onnxruntime; onnxruntime.get_available_providers = "
        "lambda: ['TensorrtExecutionProvider', 'CPUExecutionProvider']"
    )
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 0
    findings = rows(done.out)
    assert findings["tensorrt"].startswith("note: does not work: onnxruntime ")
    assert findings["cpu"].startswith("ok: works")
    assert done.out.endswith("no problems found\n")


def test_a_package_that_prints_while_it_is_imported_does_not_disturb_the_report(command, home, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("print('hello', end='')\n__version__ = '1.31.1'")
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert rows(done.out)["onnxruntime"] == "ok: 1.31.1"


def test_a_package_that_a_package_needs_is_named_if_it_is_missing(command, home, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("import flatbuffers_that_nobody_has")
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    finding = rows(done.out)["onnxruntime"]
    assert "cannot be imported: ModuleNotFoundError: No module named 'flatbuffers_that_nobody_has'" in finding


def test_a_model_that_may_not_be_read_is_a_problem_with_exit_code_4(model, tmp_path, command, no_root):
    path = Path(shutil.copy(model, tmp_path / "closed.onnx"))
    path.chmod(0)
    done = command("clf-run", "--doctor", "-m", "closed.onnx", prefix=no_root)
    assert done.code == 4
    assert "closed.onnx: permission denied → chmod +r closed.onnx, as its owner" in rows(done.out)["model"]


def test_a_model_too_new_is_a_problem_with_both_remedies(model):
    finding = doctor._check_model(model, True, "1.14.1")
    assert (finding.status, finding.exit_code) == ("wrong", 3)
    assert finding.message.endswith("; needs onnxruntime 1.15, found 1.14.1")
    assert finding.remedy == 'pip install --upgrade "onnxruntime>=1.15", or clf-export --min-runtime 1.14.1'


HIDING = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
sys.meta_path.insert(0, Hidden())
"""


def test_a_missing_package_is_a_problem_with_the_command_that_installs_it(command, home, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    findings = rows(done.out)
    assert findings["onnxruntime"] == 'wrong: not installed → pip install "clf-edge[cpu]", or "clf-edge[gpu]" for CUDA'
    assert findings["model"].startswith("ok: ")
    assert "cpu" not in findings


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ImportError('libodd.so: cannot open')", "cannot be imported: ImportError: libodd.so: cannot open"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "cannot be imported: its process was ended by SIGILL",
        ),
        ("import sys; sys.exit(3)", "cannot be imported: its process ended with exit code 3"),
    ],
)
def test_a_broken_package_is_a_problem_and_does_not_end_the_doctor(command, home, tmp_path, source, message):
    (tmp_path / "onnxruntime.py").write_text(source)
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    findings = rows(done.out)
    assert message in findings["onnxruntime"]
    assert findings["onnxruntime"].endswith("→ pip install --force-reinstall onnxruntime")


def test_a_package_that_can_be_imported_but_not_used_is_a_problem(command, home, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("__version__ = '1.31.1'")
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    assert rows(done.out)["devices"].startswith("wrong: AttributeError: module 'onnxruntime' has no attribute")


def test_two_wheels_with_the_same_module_are_a_problem(command, home, tmp_path):
    installed(tmp_path, "onnxruntime-directml", "1.24.4", "onnxruntime/__init__.py")
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    finding = rows(done.out)["wheels"]
    assert finding.startswith(
        "wrong: onnxruntime and onnxruntime-directml are both installed, and each has overwritten"
    )
    assert "→ pip uninstall onnxruntime onnxruntime-directml, then pip install" in finding


def test_an_unused_gpu_is_a_note(tmp_path):
    assert list(doctor._check_wheels(nvidia=tmp_path / "none")) == []
    (note,) = doctor._check_wheels(nvidia=tmp_path)
    assert (note.status, note.exit_code) == ("note", 0)
    assert note.message == "this machine has an NVIDIA device, but onnxruntime is the CPU wheel"


def test_too_little_memory_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "usable_memory", lambda: 100_000_000)
    finding = doctor._check_memory()
    assert (finding.status, finding.exit_code) == ("wrong", 4)
    assert finding.message == "0.1 GB available to this process"


def test_the_limits_of_the_threads_are_shown(monkeypatch):
    monkeypatch.setattr(machine, "core_limits", lambda *_: (8, 2.5))
    assert doctor._check_threads().message.startswith("2: CPU affinity 8, a cgroup quota of 2.5 cores, ")
    monkeypatch.setattr(machine, "core_limits", lambda *_: (8, float("inf")))
    assert doctor._check_threads().message.startswith("8: CPU affinity 8, no cgroup quota, ")


def test_unknown_instruction_sets_are_reported_as_unknown(monkeypatch):
    for sets, text in ((None, ": instruction sets unknown"), ([], ": none of the known"), (["AVX"], ": AVX")):
        monkeypatch.setattr(doctor.cpu, "instruction_sets", lambda sets=sets: sets)
        assert text in doctor._check_processor().message


def test_the_small_graph_multiplies_two_matrices():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4])],
    )
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert onnx.load_from_string(base64.b64decode(session._PRODUCT)) == expected


def test_a_device_that_computes_a_wrong_product_does_not_work(monkeypatch):
    probe_device("cpu")
    with pytest.raises(MachineError, match="--device cuda: "):
        probe_device("cuda")
    wrong = onnx.load_from_string(base64.b64decode(session._PRODUCT))
    wrong.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 2), np.float32), "w"))
    monkeypatch.setattr(session, "_PRODUCT", base64.b64encode(wrong.SerializeToString()).decode())
    with pytest.raises(MachineError, match=r"found \[\[2\.0, 2\.0\]\], expected"):
        probe_device("cpu")
