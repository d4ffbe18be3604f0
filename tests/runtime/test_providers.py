"""`--device`: what is named runs, or is refused with what is missing; what ran is told truthfully."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from installing import installed
from rewriting import rewritten

from clf_runtime import Classifier, InvalidModelError, MachineError, providers, session
from clf_runtime.errors import UsageError
from clf_runtime.onnx_file import read
from clf_runtime.providers import asked_for, both_told, not_built_in, not_started, short, wheels
from clf_runtime.session import CPU, CUDA, Session

KNOWN = [*onnxruntime.get_all_providers(), *onnxruntime.get_available_providers()]
TELLS_NODES = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")


@pytest.mark.parametrize(
    ("device", "provider", "options"),
    [
        ("cpu", CPU, {}),
        ("cuda", CUDA, {}),
        ("cuda:3", CUDA, {"device_id": "3"}),
        ("TensorRT:0", "TensorrtExecutionProvider", {"device_id": "0"}),
        ("openvino:GPU", "OpenVINOExecutionProvider", {"device_type": "GPU"}),
        ("coreml", "CoreMLExecutionProvider", {}),
        ("xnnpack", "XnnpackExecutionProvider", {}),
    ],
)
def test_a_provider_is_named_shortly(device, provider, options):
    assert asked_for(device, KNOWN) == (provider, options)
    assert short(provider) == device.lower().partition(":")[0]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("tpu", "unknown; expected auto, cpu, cuda or cuda:N, or one of acl, "),
        ("cuda:", "expected a number behind the colon"),
        ("cuda:one", "expected a number behind the colon"),
        ("openvino:", "expected CPU, GPU or NPU behind the colon"),
        ("cpu:0", "cpu takes nothing behind a colon"),
    ],
)
def test_what_is_no_device_is_wrong_usage(model, device, said):
    with pytest.raises(UsageError, match=said):
        Classifier.load(model, device=device)


def test_auto_takes_what_works_and_says_nothing_where_nothing_better_is_built_in(model):
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    classifier = Classifier.load(model, device="auto")
    assert (classifier.provider, classifier.notice) == (CPU, "")


@pytest.mark.parametrize(
    ("device", "wheel"),
    [("cuda", r"clf-edge\[gpu\]"), ("cuda:1", r"clf-edge\[gpu\]"), ("openvino", "onnxruntime-openvino")],
)
def test_a_provider_that_is_not_built_in_is_refused_with_the_wheel_that_has_it(model, device, wheel):
    if asked_for(device, KNOWN)[0] in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has it")
    name = device.partition(":")[0]
    with pytest.raises(MachineError, match=rf'^--device {device}: .*built without {name}; .*pip install "{wheel}"'):
        Classifier.load(model, device=device)


def test_a_provider_without_a_wheel_takes_a_build_of_ones_own():
    assert "it takes a build of onnxruntime for this device" in not_built_in("ACLExecutionProvider", "1.31.1")


@pytest.mark.skipif(not TELLS_NODES, reason="this onnxruntime does not tell where nodes run")
@pytest.mark.skipif("AzureExecutionProvider" not in KNOWN, reason="this onnxruntime has no such provider")
def test_a_provider_that_would_run_no_node_is_not_said_to_run(model):
    # It starts, and onnxruntime lists it first; it runs operators of a cloud, and every node here on the CPU.
    with pytest.raises(MachineError, match=r"^--device azure: it takes none of the \d+ nodes of "):
        Classifier.load(model, device="azure")


@pytest.mark.skipif("AzureExecutionProvider" not in KNOWN, reason="this onnxruntime has no such provider")
def test_where_nodes_are_not_told_a_provider_that_starts_is_believed(model, monkeypatch):
    # As with onnxruntime before 1.24.
    monkeypatch.setattr(session, "_nodes", lambda _: None)
    pixels = np.zeros((1, *Classifier.load(model).spec.preprocess.shape), np.uint8)
    opened = Session(read(model), "azure", 1)
    assert (opened.provider, opened.nodes, opened.notice) == ("AzureExecutionProvider", None, "")
    assert np.array_equal(opened.run(pixels)[0], Session(read(model), "cpu", 1).run(pixels)[0])


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("device", ["cuda:0", "tensorrt"])
def test_what_is_built_in_and_does_not_start_is_refused_with_what_is_missing(model, monkeypatch, device):
    # As with the GPU wheel on a machine without a GPU: onnxruntime goes on, silently, on the CPU.
    built = ["TensorrtExecutionProvider", CUDA, CPU]
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built)
    name = device.partition(":")[0]
    with pytest.raises(MachineError, match=f"^--device {device}: onnxruntime .* has {name}, but "):
        Classifier.load(model, device=device)
    classifier = Classifier.load(model, device="auto")
    assert classifier.provider == CPU
    assert classifier.notice.startswith("--device auto takes the CPU: onnxruntime ")


@pytest.mark.parametrize("self_test", [False, True])
def test_a_notice_is_told_on_stderr(model, samples, self_test):
    code = (
        "import onnxruntime, warnings; from clf_runtime.session import CPU, CUDA; "
        "onnxruntime.get_available_providers = lambda: [CUDA, CPU]; warnings.simplefilter('ignore'); "
        "from clf_runtime.cli import main; main()"
    )
    what = "--self-test" if self_test else samples[0]
    done = subprocess.run([sys.executable, "-c", code, "-m", model, what], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1  # what onnxruntime prints of libraries is no answer
    assert done.stderr.startswith("clf-run: --device auto takes the CPU: ")


def test_the_self_test_tells_a_notice_too(model):
    code = (
        "import onnxruntime, warnings; from clf_runtime.session import CPU, CUDA; "
        "onnxruntime.get_available_providers = lambda: [CUDA, CPU]; warnings.simplefilter('ignore'); "
        "from clf_runtime.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "-m", model, "--self-test"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("clf-run: --device auto takes the CPU: ")


@pytest.mark.skipif("AzureExecutionProvider" not in KNOWN, reason="this onnxruntime has no such provider")
def test_a_provider_that_runs_nodes_is_the_one_that_results_name(model, samples, monkeypatch):
    monkeypatch.setattr(session, "_nodes", lambda _: {"AzureExecutionProvider": 1})  # of an accelerator's
    assert Classifier.load(model, device="azure").predict(samples[0]).provider == "AzureExecutionProvider"


def test_a_library_that_is_there_is_not_named():
    assert providers._cannot_be_loaded("libc.so.6") == []
    assert providers._cannot_be_loaded("libnone.so.6") == ["libnone.so.6"]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_model_that_the_cpu_refuses_too_is_the_models_fault(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    loaded = onnx.load(model)
    loaded.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "other.onnx").write_bytes(loaded.SerializeToString())
    broken = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx")
    for device in ("auto", "cuda"):
        with pytest.raises(InvalidModelError, match="refused by onnxruntime"):
            Classifier.load(broken, device=device)


def test_missing_libraries_are_named_with_what_brings_them(tmp_path):
    printed = (
        "Failed to load /x/libcublasLt.so.13: libcublasLt.so.13: cannot open\nFailed to load libcurand.so.10: no\n"
    )
    said = not_started("OpenVINOExecutionProvider", "1.31.1", tmp_path, printed, "")
    assert said.startswith(
        "onnxruntime 1.31.1 has openvino, but these libraries are missing: libcublasLt.so.13, libcurand.so.10; install "
        'CUDA and cuDNN: pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"'
    )
    said = not_started("ROCMExecutionProvider", "1.22.0", tmp_path, "Failed to load libodd.so: no", "")
    assert "this library is missing: libodd.so; install what brings them" in said


@pytest.mark.skipif(sys.platform != "linux", reason="the driver has another name")
def test_the_driver_is_named_where_it_is_missing(tmp_path):
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        said = not_started(CUDA, "1.31.1", tmp_path, "", "")
        assert "this library is missing: libcuda.so.1; install the NVIDIA driver, until nvidia-smi lists" in said
    else:
        assert "look at nvidia-smi" in not_started(CUDA, "1.31.1", tmp_path, "", "")


def test_a_providers_own_library_is_tried(tmp_path):
    # One that is no library has no missing part that could be named.
    (tmp_path / "libonnxruntime_providers_openvino.so").write_text("")
    (tmp_path / "libonnxruntime_providers_openvino.dylib").write_text("")
    said = not_started("OpenVINOExecutionProvider", "1.24.1", tmp_path, "", "no\ndevice  found")
    assert said == "onnxruntime 1.24.1 has openvino, but it does not start here: no device found"
    said = not_started("OpenVINOExecutionProvider", "1.24.1", tmp_path, "", "")
    assert said.endswith("but it does not start here, and does not say why")


def test_a_library_that_can_be_loaded_is_not_missing():
    import _ctypes

    assert providers._cannot_be_loaded(_ctypes.__file__) == []


def test_what_raised_is_told_where_no_library_is_missing(tmp_path):
    assert "it does not start here: why" in not_started("DmlExecutionProvider", "1.24.4", tmp_path, "", " why\n")


def test_two_wheels_that_own_the_same_module_are_told(tmp_path, monkeypatch):
    (name, version), *others = wheels()
    assert (name.startswith("onnxruntime"), others, both_told()) == (True, [], "")
    installed(tmp_path, "onnxruntime-extensions", "0.15.2", "onnxruntime_extensions/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert wheels() == [(name, version)]
    installed(tmp_path, "onnxruntime-directml", "1.24.4", "onnxruntime/__init__.py")
    assert wheels() == sorted([(name, version), ("onnxruntime-directml", "1.24.4")])
    told = both_told()
    assert f"{name} {version}" in told
    assert "onnxruntime-directml 1.24.4" in told
    assert f"pip uninstall {name} onnxruntime-directml, then install one of them" in told
    assert not_built_in(CUDA, "1.31.1").endswith(told)


def test_a_session_tells_where_its_nodes_run(model):
    recorded = Session(read(model), "cpu", 1, record_nodes=True).nodes
    if TELLS_NODES:
        assert list(recorded) == [CPU]
        assert recorded[CPU] > 5
    else:
        assert recorded is None
    assert Session(read(model), "cpu", 1).nodes is None


def test_a_device_that_fails_on_a_batch_is_told_in_one_line(model):
    code = (
        "import resource, numpy\n"
        "from pathlib import Path\n"
        "from clf_runtime import Classifier, MachineError\n"
        f"classifier = Classifier.load({str(model)!r}, threads=1)\n"
        "pixels = numpy.zeros((60_000, *classifier.spec.preprocess.shape), numpy.uint8)\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)\n"
        "try: classifier.run(pixels)\n"
        "except MachineError as unable: print(unable)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not limit a process's memory so")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("CPUExecutionProvider failed on a batch of 60000: ")
    assert said.endswith("; try a smaller --batch-size, or --device cpu\n")
    assert said.count("\n") == 1


def test_pixels_of_another_shape_are_the_callers_fault(model):
    with pytest.raises(Exception, match="Got invalid dimensions"):
        Classifier.load(model).run(np.zeros((1, 3, 3, 1), np.uint8))
