"""`clf-run --doctor`: what a machine has, what would be wrong with a model on it, and what mends that."""

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
from clf_runtime.session import start


def rows(out: str) -> dict[str, str]:
    """Give what was found, by what was looked at: the state, what was said, and the remedy."""
    found: dict[str, str] = {}
    what = ""
    for line in out.splitlines()[:-1]:
        state, said = line[:5].strip(), line[7:]
        if state:
            what, _, said = said.partition(" ")
            found[what] = f"{state}: {said.strip()}"
        else:
            found[what] += f" {said.strip()}"
    return found


def test_a_machine_where_all_is_well_ends_with_0(command, home):
    done = command("clf-run", "--doctor", cwd=home)
    assert (done.code, done.err) == (0, "")
    found = rows(done.out)
    assert list(found)[:9] == (
        ["clf-edge", "numpy", "Pillow", "onnxruntime", "processor", "threads", "memory", "model", "cpu"]
    )
    assert found["model"].startswith("ok: artifacts/model.onnx: small-resnet, 10 labels, ")
    assert found["cpu"].startswith("ok: works: passed: 16 images on CPUExecutionProvider, max |difference of a logit|")
    assert done.out.endswith("all is well\n")


def test_without_a_model_the_rest_is_looked_at(command):
    done = command("clf-run", "--doctor", "--format", "json")
    assert done.code == 0
    content = json.loads(done.out)
    assert content["well"] is True
    found = {each["what"]: each for each in content["findings"]}
    assert found["model"]["said"] == "artifacts/model.onnx: there is none, so devices are tried with a small graph"
    assert found["model"]["remedy"] == "make one with clf-export"
    assert found["cpu"]["said"] == "works"


@pytest.mark.parametrize("name", ["none.onnx", "cut.onnx"])
def test_a_model_that_is_missing_or_damaged_ends_with_3(command, model, tmp_path, name):
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:-1000])
    done = command("clf-run", "--doctor", "-m", name)
    assert done.code == 3
    found = rows(done.out)
    assert found["model"].startswith(f"wrong: {name}: ")
    assert "clf-export" in found["model"]
    assert found["cpu"] == "ok: works"
    assert done.out.endswith("1 thing is wrong\n")


def test_a_model_that_answers_otherwise_here_ends_with_3(command, model, tmp_path):
    test = SelfTest.from_json(read(model).metadata[SELFTEST_KEY], "")
    shifted = [type(case)(case.name, case.image, case.logits[::-1]) for case in test.cases]
    rewritten(model, tmp_path / "bad.onnx", **{SELFTEST_KEY: SelfTest(1e-4, tuple(shifted)).to_json()})
    done = command("clf-run", "--doctor", "-m", "bad.onnx")
    assert done.code == 3
    assert rows(done.out)["cpu"].startswith("wrong: does not work: bad.onnx: FAILED: 16 images")


def test_a_device_that_is_named_and_does_not_work_ends_with_4(command, home):
    done = command("clf-run", "--doctor", "--device", "cuda", cwd=home)
    assert done.code == 4
    found = rows(done.out)
    assert found["cuda"].startswith("wrong: does not work: this onnxruntime ")
    assert found["cuda"].endswith('then pip install "clf-edge[gpu]"')
    assert found["cpu"].startswith("ok: works")


def test_a_model_that_may_not_be_read_is_told(model, tmp_path, command, no_root):
    path = Path(shutil.copy(model, tmp_path / "closed.onnx"))
    path.chmod(0)
    done = command("clf-run", "--doctor", "-m", "closed.onnx", prefix=no_root)
    assert done.code == 4
    assert "closed.onnx: permission denied → chmod +r closed.onnx, as its owner" in rows(done.out)["model"]


def test_a_model_too_new_is_told_with_both_ways_out(model):
    found = doctor._model(model, True, "1.14.1")
    assert found.exit_code == 3
    assert found.said.endswith("; it needs onnxruntime 1.15, here is 1.14.1")
    assert found.remedy == 'pip install --upgrade "onnxruntime>=1.15", or clf-export --min-runtime 1.14.1'


HIDING = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
sys.meta_path.insert(0, Hidden())
"""


def test_a_package_that_is_missing_is_named_with_what_brings_it(command, home, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    found = rows(done.out)
    assert found["onnxruntime"] == 'wrong: is not installed → pip install "clf-edge[cpu]", or "clf-edge[gpu]" for CUDA'
    assert found["model"].startswith("ok: ")
    assert "cpu" not in found


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libodd.so: cannot open')", "cannot be imported: ImportError: libodd.so: cannot open"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "cannot be imported: its process ends with SIGILL"),
        ("import sys; sys.exit(3)", "cannot be imported: it says nothing"),
    ],
)
def test_a_package_that_is_broken_does_not_take_the_doctor_with_it(command, home, tmp_path, source, said):
    (tmp_path / "onnxruntime.py").write_text(source)
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    found = rows(done.out)
    assert said in found["onnxruntime"]
    assert found["onnxruntime"].endswith("→ pip install --force-reinstall onnxruntime")


def test_a_package_that_can_be_imported_and_not_used_is_told(command, home, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("__version__ = '1.31.1'")
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    assert rows(done.out)["devices"].startswith("wrong: AttributeError: module 'onnxruntime' has no attribute")


def test_two_wheels_are_told(command, home, tmp_path):
    installed(tmp_path, "onnxruntime-directml", "1.24.4", "onnxruntime/__init__.py")
    done = command("clf-run", "--doctor", cwd=home, PYTHONPATH=str(tmp_path))
    assert done.code == 4
    found = rows(done.out)["wheels"]
    assert found.startswith("wrong: onnxruntime and onnxruntime-directml are both installed, and each has replaced")
    assert "→ pip uninstall onnxruntime onnxruntime-directml, then pip install" in found


def test_a_gpu_that_lies_idle_is_noted(tmp_path):
    assert list(doctor._wheels(nvidia=tmp_path / "none")) == []
    (note,) = doctor._wheels(nvidia=tmp_path)
    assert (note.exit_code, note.well) == (0, False)
    assert note.said == "there is an NVIDIA device, and onnxruntime's wheel for CPUs"


def test_too_little_memory_is_wrong(monkeypatch):
    monkeypatch.setattr(machine, "usable_memory", lambda: 100_000_000)
    found = doctor._memory()
    assert (found.exit_code, found.said) == (4, "0.1 GB for this process to take")


def test_what_limits_the_threads_is_told(monkeypatch):
    monkeypatch.setattr(machine, "shares", lambda *_: (8, 2.5))
    assert doctor._threads().said.startswith("2: an affinity mask of 8, a cgroup quota of 2.5 cores, ")
    monkeypatch.setattr(machine, "shares", lambda *_: (8, float("inf")))
    assert doctor._threads().said.startswith("8: an affinity mask of 8, no cgroup quota, ")


def test_instruction_sets_that_are_not_told_are_said_to_be(monkeypatch):
    for sets, said in ((None, ": instruction sets not told"), ([], ": no instruction set known"), (["AVX"], ": AVX")):
        monkeypatch.setattr(doctor.cpu, "instruction_sets", lambda sets=sets: sets)
        assert said in doctor._processor().said


def test_the_small_graph_is_what_it_is_said_to_be():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert onnx.load_from_string(base64.b64decode(session._PRODUCT)) == made


def test_a_device_that_multiplies_wrongly_does_not_work(monkeypatch):
    start("cpu")
    with pytest.raises(MachineError, match="--device cuda: "):
        start("cuda")
    made = onnx.load_from_string(base64.b64decode(session._PRODUCT))
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 2), np.float32), "w"))
    monkeypatch.setattr(session, "_PRODUCT", base64.b64encode(made.SerializeToString()).decode())
    with pytest.raises(MachineError, match=r"wrong: \[\[2\.0, 2\.0\]\]"):
        start("cpu")
