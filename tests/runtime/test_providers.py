"""`--device`: a named device runs or is an error that says what is missing; loading changes no global state."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, create_environment
from installing import installed
from PIL import Image
from rewriting import failing_on_white, rewritten

from clf_runtime import Classifier, InvalidModelError, MachineError, libraries, session
from clf_runtime.errors import UsageError
from clf_runtime.onnx_file import read
from clf_runtime.providers import (
    choose_options,
    explain_conflict,
    explain_not_included,
    explain_not_started,
    find_missing_libraries,
    installed_wheels,
    parse_device,
    short_name,
)
from clf_runtime.session import CPU, CUDA, TENSORRT, Session

AVAILABLE = onnxruntime.get_available_providers()
KNOWN = [*onnxruntime.get_all_providers(), *AVAILABLE]
REPORTS_NODES = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="dependencies are read from ELF files only")

# Makes onnxruntime report CUDA as included, as in the GPU wheel on a machine without a GPU.
INCLUDE_CUDA = (
    "import onnxruntime, warnings; from clf_runtime.session import CPU, CUDA; "
    "onnxruntime.get_available_providers = lambda: [CUDA, CPU]; warnings.simplefilter('ignore')\n"
)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed."""
    process = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process


@pytest.fixture
def includes_cuda(monkeypatch) -> None:
    """onnxruntime reports CUDA and TensorRT as included, as the GPU wheel does on a machine without a GPU."""
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime includes CUDA")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])


@pytest.mark.parametrize(
    ("device", "provider", "options"),
    [
        ("cpu", CPU, {}),
        ("cuda", CUDA, {}),
        ("cuda:3", CUDA, {"device_id": "3"}),
        ("TensorRT:0", TENSORRT, {"device_id": "0"}),
        ("openvino:GPU", "OpenVINOExecutionProvider", {"device_type": "GPU"}),
        ("coreml", "CoreMLExecutionProvider", {}),
        ("xnnpack", "XnnpackExecutionProvider", {}),
    ],
)
def test_a_device_is_the_short_name_of_a_provider(device, provider, options):
    assert parse_device(device, KNOWN) == (provider, options)
    assert short_name(provider) == device.lower().partition(":")[0]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu", "unknown device; expected auto, cpu, cuda or cuda:N, or one of acl, "),
        ("cuda:", "expected a number after the colon"),
        ("cuda:one", "expected a number after the colon"),
        ("openvino:", "expected CPU, GPU or NPU after the colon"),
        ("cpu:0", "cpu does not take a value after a colon"),
    ],
)
def test_an_unknown_device_is_a_usage_error(model, device, message):
    with pytest.raises(UsageError, match=message):
        Classifier.load(model, device=device)


def test_auto_uses_the_cpu_without_a_warning_if_onnxruntime_does_not_include_cuda(model):
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime includes CUDA")
    classifier = Classifier.load(model, device="auto")
    assert (classifier.provider, classifier.warning) == (CPU, "")


@pytest.mark.parametrize(
    ("device", "wheel"),
    [("cuda", r"clf-edge\[gpu\]"), ("cuda:1", r"clf-edge\[gpu\]"), ("openvino", "onnxruntime-openvino")],
)
def test_a_provider_that_is_not_included_is_an_error_with_the_wheel_that_includes_it(model, device, wheel):
    if parse_device(device, KNOWN)[0] in AVAILABLE:
        pytest.skip("this onnxruntime includes it")
    name = device.partition(":")[0]
    with pytest.raises(MachineError, match=rf'^--device {device}: .*does not include {name}; .*pip install "{wheel}"'):
        Classifier.load(model, device=device)


def test_a_provider_without_a_wheel_needs_a_custom_build():
    assert "install a build of onnxruntime for this device" in explain_not_included("ACLExecutionProvider", "1.31.1")


@pytest.mark.skipif(not REPORTS_NODES, reason="this onnxruntime does not report where nodes run")
@pytest.mark.skipif("AzureExecutionProvider" not in AVAILABLE, reason="this onnxruntime has no such provider")
def test_a_provider_that_would_run_no_node_is_an_error(model):
    # It starts, and onnxruntime lists it first, but it runs operators of a cloud, and every node here on the CPU.
    with pytest.raises(MachineError, match=r"^--device azure: it supports none of the \d+ nodes of "):
        Classifier.load(model, device="azure")


@pytest.mark.skipif("AzureExecutionProvider" not in AVAILABLE, reason="this onnxruntime has no such provider")
def test_a_provider_that_starts_is_used_if_nodes_are_not_reported(model, monkeypatch):
    # As with onnxruntime before 1.24.
    monkeypatch.setattr(session, "_count_nodes", lambda _: None)
    pixels = np.zeros((1, *Classifier.load(model).spec.preprocess.shape), np.uint8)
    opened = Session(read(model), "azure", 1)
    assert (opened.provider, opened.nodes, opened.warning) == ("AzureExecutionProvider", None, "")
    assert np.array_equal(opened.run(pixels)[0], Session(read(model), "cpu", 1).run(pixels)[0])


@pytest.mark.usefixtures("includes_cuda")
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("device", ["cuda:0", "tensorrt"])
def test_a_provider_that_does_not_start_is_an_error_that_says_what_is_missing(model, device):
    name = device.partition(":")[0]
    with pytest.raises(MachineError, match=f"^--device {device}: onnxruntime .* includes {name}, but "):
        Classifier.load(model, device=device)
    classifier = Classifier.load(model, device="auto")
    assert classifier.provider == CPU
    assert classifier.warning.startswith("--device auto uses the CPU: onnxruntime ")


@pytest.mark.usefixtures("includes_cuda")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_without_missing_libraries_is_tried_and_the_reason_of_its_failure_is_unknown(model, monkeypatch):
    # As with a driver that does not see its device. Only the search is replaced: onnxruntime itself falls back.
    monkeypatch.setattr(libraries, "load", lambda name: None)
    with pytest.raises(MachineError, match="but it does not start, for an unknown reason; check that nvidia-smi lists"):
        Classifier.load(model, device="cuda")


def test_cuda_multiplies_in_float32_and_searches_no_algorithms():
    assert choose_options(CUDA, "1.31.1", 2) == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert choose_options(CUDA, "1.17.1", 2) == {"cudnn_conv_algo_search": "HEURISTIC"}  # knows no use_tf32
    assert choose_options("OpenVINOExecutionProvider", "1.24.1", 2) == {"num_of_threads": "2"}
    assert choose_options("CoreMLExecutionProvider", "1.31.1", 2) == {}


class KernelsOfOtherGPUs:
    """A session on a GPU for which the wheel has no kernels: it opens, and fails with onnxruntime's own exception.

    Seen with onnxruntime-gpu 1.31.1 without its kernels for the GPU at hand; everything but the provider is real.
    """

    def __init__(self, real: onnxruntime.InferenceSession) -> None:
        self.get_inputs, self.get_outputs = real.get_inputs, real.get_outputs

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def run(self, *_: object) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Sub node. Name:'node_sub'\n"
            "Status Message: CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution"
        )


@pytest.mark.usefixtures("includes_cuda")
def test_a_gpu_that_fails_on_the_first_image_is_an_error_and_auto_uses_the_cpu(model, monkeypatch):
    real = Session(read(model), "cpu", 1)._session
    monkeypatch.setattr(session, "_open_accelerated", lambda *_: KernelsOfOtherGPUs(real))
    reason = (
        "^--device cuda: CUDAExecutionProvider starts, but fails on the first image: .*:no kernel image is available"
    )
    with pytest.raises(MachineError, match=reason) as error:
        Classifier.load(model, device="cuda")
    assert "\n" not in str(error.value)
    classifier = Classifier.load(model, device="auto")
    assert classifier.provider == CPU
    assert classifier.warning.startswith("--device auto uses the CPU: CUDAExecutionProvider starts, but fails on ")


@pytest.mark.slow
@linux_only
def test_the_gpu_wheel_without_a_gpu_prints_one_line_and_no_log_of_onnxruntime(model, samples, tmp_path):
    if libraries.load("libcuda.so.1") is None:
        pytest.skip("this machine has an NVIDIA driver")
    python = create_environment(tmp_path / "gpu", "onnxruntime-gpu", "numpy", "pillow", "click") / "bin/python"

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [python, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "runtime")})

    main = "from clf_runtime.cli import main; main()"
    process = run(main, samples[0], "-m", model, "--device", "auto")
    assert process.returncode == 0
    warning, summary = process.stderr.splitlines()
    assert warning.startswith("clf-run: --device auto uses the CPU: onnxruntime ")
    assert "libcuda.so.1" in warning
    assert summary.startswith("clf-run: 1 image, 0 failed, ")
    for device in ("cuda", "tensorrt"):
        process = run(main, samples[0], "-m", model, "--device", device)
        assert (process.returncode, process.stdout) == (4, "")
        (error,) = process.stderr.splitlines()
        assert error.startswith(f"clf-run: --device {device}: onnxruntime ")
        assert "libcuda.so.1" in error
    process = run("import sys; from clf_runtime import Classifier; Classifier.load(sys.argv[1])", model)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


@pytest.mark.parametrize("is_self_test", [False, True], ids=["images", "self-test"])
def test_a_warning_is_one_line_on_stderr(model, samples, is_self_test):
    arguments = ["--self-test"] if is_self_test else [samples[0]]
    process = run_python(INCLUDE_CUDA + "from clf_runtime.cli import main; main()", "-m", model, *arguments)
    assert process.stdout.count("\n") == 1
    assert process.stderr.startswith("clf-run: --device auto uses the CPU: ")
    assert process.stderr.count("\n") == (1 if is_self_test else 2)  # with images, the summary follows


def test_loading_in_threads_loses_nothing_that_another_thread_prints(model):
    code = INCLUDE_CUDA + (
        "import sys, threading\n"
        "from clf_runtime import Classifier, MachineError\n"
        "sys.setswitchinterval(1e-6)\n"
        "stdout, stderr = sys.stdout, sys.stderr\n"
        "def load():\n"
        "    for device in ['auto', 'cuda', 'cpu'] * 5:\n"
        "        try: Classifier.load(sys.argv[1], device=device)\n"
        "        except MachineError: pass\n"
        "threads = [threading.Thread(target=load) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "printed = 0\n"
        "while any(thread.is_alive() for thread in threads):\n"
        "    print(printed, flush=True)\n"
        "    printed += 1\n"
        "assert sys.stdout is stdout and sys.stderr is stderr\n"
        "print('total', printed)\n"
    )
    *lines, total = run_python(code, model).stdout.splitlines()
    assert total == f"total {len(lines)}"
    assert lines == [str(number) for number in range(len(lines))]
    assert len(lines) > 100


def test_another_thread_can_print_while_onnxruntime_prints_what_it_cannot_load(model):
    code = INCLUDE_CUDA + (
        "import sys, threading; from clf_runtime import Classifier\n"
        "is_loading, has_printed = threading.Event(), threading.Event()\n"
        "def preload_dlls():\n"
        "    print('Failed to load libcurand.so.10: no such file')\n"
        "    is_loading.set()\n"
        "    assert has_printed.wait(60)\n"
        "onnxruntime.preload_dlls = preload_dlls\n"
        "thread = threading.Thread(target=Classifier.load, args=[sys.argv[1]])\n"
        "thread.start()\n"
        "assert is_loading.wait(60)\n"
        "print('printed while loading', flush=True)\n"
        "has_printed.set()\n"
        "thread.join()\n"
    )
    assert run_python(code, model).stdout == "printed while loading\n"


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_loading_keeps_the_level_of_onnxruntimes_log(model, device):
    # There is no way to ask for the level, so it is set to the most verbose one; afterwards a session must write a log.
    code = INCLUDE_CUDA + (
        "import sys; from clf_runtime import Classifier, MachineError\n"
        "onnxruntime.set_default_logger_severity(0)\n"
        "try: Classifier.load(sys.argv[1], device=sys.argv[2])\n"
        "except MachineError: pass\n"
        "print('loaded', file=sys.stderr, flush=True)\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=[CPU])\n"
    )
    after = run_python(code, model, device).stderr.partition("loaded\n")[2]
    assert re.search(r":onnxruntime:Default", after)


def test_the_commands_silence_onnxruntimes_log(model):
    code = (
        "import sys, onnxruntime; from clf_runtime import session\n"
        "session.silence_log()\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=[session.CPU])\n"
    )
    assert run_python(code, model).stderr == ""


def test_preloading_collects_what_onnxruntime_prints_and_prints_nothing(monkeypatch, capsys):
    def preload_dlls(cuda: bool = True, directory: str | None = None) -> None:
        print("Failed to load /x/libcublasLt.so.13: libcublasLt.so.13: cannot open", cuda, directory)
        print("Failed to load libcurand.so.10: no")
        raise RuntimeError("the directory does not exist")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls, raising=False)
    assert session._preload_cuda() == ["libcublasLt.so.13", "libcurand.so.10"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.delattr(onnxruntime, "preload_dlls")  # as before onnxruntime 1.21
    assert session._preload_cuda() == []


@pytest.mark.skipif("AzureExecutionProvider" not in AVAILABLE, reason="this onnxruntime has no such provider")
def test_a_provider_that_runs_nodes_is_named_in_the_results(model, samples, monkeypatch):
    monkeypatch.setattr(session, "_count_nodes", lambda _: {"AzureExecutionProvider": 1})  # as for an accelerator
    assert Classifier.load(model, device="azure").predict(samples[0]).provider == "AzureExecutionProvider"


@pytest.mark.usefixtures("includes_cuda")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_model_that_the_cpu_cannot_open_either_is_an_error_of_the_model(model, tmp_path):
    loaded = onnx.load(model)
    loaded.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "other.onnx").write_bytes(loaded.SerializeToString())
    broken = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx")
    for device in ("auto", "cuda"):
        with pytest.raises(InvalidModelError, match=r"onnxruntime \S+ cannot open it"):
            Classifier.load(broken, device=device)


@pytest.mark.skipif("AzureExecutionProvider" not in AVAILABLE, reason="this onnxruntime has no such provider")
def test_a_model_that_no_provider_can_open_is_an_error_of_the_model(model, tmp_path):
    loaded = onnx.load(model)
    loaded.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "other.onnx").write_bytes(loaded.SerializeToString())
    broken = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx")
    with pytest.raises(InvalidModelError, match=r"onnxruntime \S+ cannot open it"):
        Classifier.load(broken, device="azure")


def test_missing_libraries_are_named_with_the_packages_that_contain_them():
    cuda = ["libcublasLt.so.13", "libcurand.so.10"]
    message = explain_not_started("OpenVINOExecutionProvider", "1.31.1", cuda, "")
    assert message == (
        "onnxruntime 1.31.1 includes openvino, but the following libraries are missing: libcublasLt.so.13, "
        'libcurand.so.10; install CUDA and cuDNN: pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"'
    )
    message = explain_not_started("ROCMExecutionProvider", "1.22.0", ["libodd.so"], "")
    assert "the following library is missing: libodd.so; install the packages that contain them" in message
    message = explain_not_started(TENSORRT, "1.31.1", ["libnvinfer.so.10", "libcuda.so.1"], "")
    assert "install TensorRT: pip install tensorrt, and the NVIDIA driver" in message


def test_the_reason_that_onnxruntime_raised_is_in_the_message_if_no_library_is_missing():
    message = explain_not_started("OpenVINOExecutionProvider", "1.24.1", [], "no\ndevice  found")
    assert message == "onnxruntime 1.24.1 includes openvino, but it does not start: no device found"
    message = explain_not_started("DmlExecutionProvider", "1.24.4", [], "")
    assert message.endswith("but it does not start, for an unknown reason")


@linux_only
def test_the_nvidia_driver_is_named_if_it_is_missing(tmp_path):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert find_missing_libraries(CUDA, tmp_path) == ["libcuda.so.1"]
    else:
        assert find_missing_libraries(CUDA, tmp_path) == []
    assert find_missing_libraries("OpenVINOExecutionProvider", tmp_path) == []


@linux_only
def test_the_libraries_that_a_provider_needs_and_that_are_missing_are_named(tmp_path):
    # A real library, with another name in place of one that it needs.
    import _ctypes

    content = Path(_ctypes.__file__).read_bytes()
    name = re.search(rb"libffi\.so\.\d", content)[0]
    library = tmp_path / "libonnxruntime_providers_openvino.so"
    library.write_bytes(content.replace(name + b"\0", name.replace(b"ffi", b"odd") + b"\0"))
    missing = name.replace(b"ffi", b"odd").decode()
    assert find_missing_libraries("OpenVINOExecutionProvider", tmp_path) == [missing]
    (tmp_path / missing).touch()  # beside the library, where the providers of a wheel have theirs
    assert find_missing_libraries("OpenVINOExecutionProvider", tmp_path) == []


@linux_only
@pytest.mark.parametrize("content", [b"", b"not a library" * 10, b"\x7fELF\x02\x01" + bytes(10)])
def test_a_file_that_is_no_library_has_no_dependencies(tmp_path, content):
    (tmp_path / "other.so").write_bytes(content)
    assert libraries.missing_dependencies(tmp_path / "other.so") == []
    assert libraries.missing_dependencies(tmp_path / "none.so") == []


@linux_only
def test_only_a_library_that_does_not_exist_is_missing(tmp_path):
    (tmp_path / "broken.so").write_bytes(b"not a library")
    assert libraries.load("libc.so.6") is None
    assert libraries.load("libnone.so.6") == "libnone.so.6"
    assert libraries.load(str(tmp_path / "broken.so")) is None


def test_two_wheels_with_the_same_module_are_named_in_the_message(tmp_path, monkeypatch):
    (name, version), *others = installed_wheels()
    assert (name.startswith("onnxruntime"), others, explain_conflict()) == (True, [], "")
    installed(tmp_path, "onnxruntime-extensions", "0.15.2", "onnxruntime_extensions/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_wheels() == [(name, version)]
    installed(tmp_path, "onnxruntime-directml", "1.24.4", "onnxruntime/__init__.py")
    assert installed_wheels() == sorted([(name, version), ("onnxruntime-directml", "1.24.4")])
    message = explain_conflict()
    assert f"{name} {version}" in message
    assert "onnxruntime-directml 1.24.4" in message
    assert f"pip uninstall {name} onnxruntime-directml, then install one of them" in message
    assert explain_not_included(CUDA, "1.31.1").endswith(message)


def test_a_session_reports_where_its_nodes_run(model):
    recorded = Session(read(model), "cpu", 1, record_nodes=True).nodes
    if REPORTS_NODES:
        assert list(recorded) == [CPU]
        assert recorded[CPU] > 5
    else:
        assert recorded is None
    assert Session(read(model), "cpu", 1).nodes is None


def test_a_device_that_fails_on_a_batch_is_an_error_in_one_line(model):
    code = (
        "import resource, numpy\n"
        "from pathlib import Path\n"
        "from clf_runtime import Classifier, MachineError\n"
        f"classifier = Classifier.load({str(model)!r}, threads=1)\n"
        "pixels = numpy.zeros((60_000, *classifier.spec.preprocess.shape), numpy.uint8)\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)\n"
        "try: classifier.run(pixels)\n"
        "except MachineError as error: print(error)\n"
    )
    pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system has no such limit of a process's memory")
    message = run_python(code).stdout
    assert message.startswith("CPUExecutionProvider failed on a batch of 60000: ")
    assert message.endswith("; try a smaller --batch-size\n")
    assert message.count("\n") == 1


def test_a_graph_that_fails_for_some_images_is_an_error_in_one_line(command, model, samples, tmp_path):
    failing_on_white(model, tmp_path / "model.onnx")
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    assert command("clf-run", "--model", "model.onnx", samples[0]).code == 0
    done = command("clf-run", "--model", "model.onnx", "white.png")
    assert (done.code, done.out) == (4, "")
    assert "CPUExecutionProvider failed on a batch of 1: " in done.error
    assert "Gather node" in done.error


def test_pixels_of_another_shape_are_an_error_of_the_caller(model):
    with pytest.raises(Exception, match="Got invalid dimensions"):
        Classifier.load(model).run(np.zeros((1, 3, 3, 1), np.uint8))
