"""The one module that imports onnxruntime: opens a model on a device and runs batches of pixels."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from clf_runtime.errors import InvalidModelError, MachineError
from clf_runtime.onnx_file import OnnxFile, parse_version
from clf_runtime.preprocess import UInt8Array

Float32Array = npt.NDArray[np.float32]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_FATAL_ONLY = 4  # the messages of onnxruntime's log are in our errors
# The ONNX file of y = x @ [[1, 2], [3, 4]], float32, opset 13, IR 8. A test builds it again.
_PRODUCT = (
    "CAg6XQoRCgF4CgF3EgF5IgZNYXRNdWwSAWcqGwgCCAIQASIQAACAPwAAAEAAAEBAAACAQEIBd1oTCgF4Eg4KDAgBEggKAggBCgII"
    "AmITCgF5Eg4KDAgBEggKAggBCgIIAkIECgAQDQ=="
)
_SYSTEM_ERROR = re.compile(r"system error number (\d+)")  # in the message if a file cannot be opened
_RECORD_NODES = "session.record_ep_graph_assignment_info"  # since onnxruntime 1.24


class Session:
    """A model that is open on one device. `run` may be called from several threads at once.

    Attributes:
        provider: onnxruntime's name of the execution provider that runs the model.
        warning: Why `auto` selected the CPU although onnxruntime includes CUDA; otherwise empty.
    """

    def __init__(self, model: OnnxFile, device: str, threads: int, record_nodes: bool = False) -> None:
        """Open a model on a device.

        Args:
            model: The model file.
            device: auto, cpu, cuda, cuda:N, or the short name of another provider. All but auto run there or fail.
            threads: The number of threads for one batch.
            record_nodes: Whether `nodes` is available.

        Raises:
            MachineError: The device does not work on this machine.
            UsageError: The device is unknown.
            InvalidModelError: onnxruntime cannot open the model, or not the content that was verified.
            OSError: The file cannot be opened.
        """
        _check_runtime_version(model)
        self.warning = ""
        provider, options = _select_provider(device)
        if provider == CPU:
            self._session = _open(model.path, [CPU], threads, record_nodes)
        else:
            try:
                self._session = _open_accelerated(model.path, provider, options, threads)
                _check_signature(model.path, self._session)
                # A GPU for which the wheel has no kernels fails here, and not before.
                self._try_blank_image()
            except MachineError as error:
                # If the CPU cannot open the model either, the model is at fault and not the device.
                self._session = _open(model.path, [CPU], threads, record_nodes)
                if device != "auto":
                    raise MachineError(f"--device {device}: {error}") from None
                self.warning = f"--device auto uses the CPU: {error}"
        model.check_unchanged()
        _check_signature(model.path, self._session)
        self.provider: str = self._session.get_providers()[0]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of the graph's input."""
        return tuple(self._session.get_inputs()[0].shape[1:])

    @property
    def classes(self) -> int:
        """The number of classes that the graph returns."""
        return int(self._session.get_outputs()[0].shape[1])

    @property
    def nodes(self) -> dict[str, int] | None:
        """How many nodes of the graph each provider runs; None if onnxruntime did not record it."""
        return _count_nodes(self._session)

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels).

        Raises:
            MachineError: The device fails, for example because the batch is too large for its memory, or the graph
                has an operator that cannot compute these images.
        """
        try:
            return _run(self._session, pixels)
        except _RunFailure as error:
            other = "" if self.provider == CPU else ", or --device cpu"
            raise MachineError(
                f"{self.provider} failed on a batch of {len(pixels)}: {error}; try a smaller --batch-size{other}"
            ) from None

    def _try_blank_image(self) -> None:
        """Raise MachineError if the device cannot run the graph."""
        try:
            _run(self._session, np.zeros((1, *self.image_shape), np.uint8))
        except _RunFailure as error:
            provider = self._session.get_providers()[0]
            raise MachineError(f"{provider} starts, but fails on the first image: {error}") from None


class _RunFailure(Exception):
    """A device failed, or the graph on it; the message is onnxruntime's reason, in one line."""


# onnxruntime's classes for what is neither an invalid argument nor a bug.
_RUN_ERRORS = frozenset(("EPFail", "Fail", "RuntimeException"))
# An operator may call what it computes from an argument invalid, such as an index.
_WITHIN_THE_GRAPH = "while running"


def _run(session: Any, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
    try:
        logits, probabilities = session.run(["logits", "probabilities"], {"image": pixels})
    except Exception as error:  # onnxruntime's own classes have no common base
        if type(error).__name__ not in _RUN_ERRORS and _WITHIN_THE_GRAPH not in str(error):
            raise
        raise _RunFailure(" ".join(str(error).split())) from None
    return logits, probabilities


def runtime_version() -> str:
    """Return the version of the installed onnxruntime."""
    return str(onnxruntime.__version__)


def included_providers() -> list[str]:
    """Return the providers that the installed onnxruntime includes; not all of them may work here."""
    return [str(provider) for provider in onnxruntime.get_available_providers()]


def silence_log() -> None:
    """Silence onnxruntime's log for the whole process. For commands only: a library must not change global state.

    onnxruntime writes there if a provider cannot be created, for example; our error contains the reason.
    """
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)


def probe_device(device: str) -> None:
    """Multiply two small matrices on a device, to check that it works. Raises UsageError, MachineError."""
    import tempfile

    provider, options = _select_provider(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(base64.b64decode(_PRODUCT))
        is_cpu = provider == CPU
        session = _open(path, [CPU], 1, False) if is_cpu else _open_accelerated(path, provider, options, 1)
        (product,) = session.run(["y"], {"x": np.asarray([[1, 1]], np.float32)})
    if product.tolist() != [[4, 6]]:
        raise MachineError(
            f"--device {device}: wrong product of two small matrices (found {product.tolist()}, expected [[4, 6]])"
        )


def _check_runtime_version(model: OnnxFile) -> None:
    required = model.oldest_runtime
    if required is None or parse_version(runtime_version()) >= parse_version(required):
        return
    raise InvalidModelError(
        f"{model.path}: opset {model.opset} and IR {model.ir_version} need onnxruntime {required} or later, "
        f"found {runtime_version()}; update onnxruntime, or export for this version with --min-runtime"
    )


def _check_signature(path: Path, session: Any) -> None:
    inputs = [(value.name, value.type, len(value.shape)) for value in session.get_inputs()]
    outputs = {(value.name, value.type, len(value.shape)) for value in session.get_outputs()}
    expected = {("logits", "tensor(float)", 2), ("probabilities", "tensor(float)", 2)}
    if inputs != [("image", "tensor(uint8)", 4)] or outputs != expected:
        raise InvalidModelError(
            f"{path}: its graph has inputs {inputs} and outputs {sorted(outputs)}, "
            "expected uint8 image and float logits and probabilities; export it with clf-export"
        )


def _select_provider(device: str) -> tuple[str, dict[str, str]]:
    """Return the provider to try, and its options. Raises UsageError, MachineError."""
    if device == "cpu":
        return CPU, {}
    included = included_providers()
    if device == "auto":
        return CUDA if CUDA in included else CPU, {}
    from clf_runtime.providers import explain_not_included, parse_device

    provider, options = parse_device(device, [*onnxruntime.get_all_providers(), *included])
    if provider not in included:
        raise MachineError(f"--device {device}: {explain_not_included(provider, runtime_version())}")
    return provider, options


def _open_accelerated(path: Path, provider: str, options: dict[str, str], threads: int) -> Any:
    """Open a model on a provider other than the CPU. Raises MachineError with the reason if it does not work."""
    from clf_runtime.providers import choose_options, explain_not_started, find_missing_libraries

    unloadable = _preload_cuda() if provider in (CUDA, TENSORRT) else []
    missing = find_missing_libraries(provider, Path(onnxruntime.__file__).parent / "capi")
    if missing:
        # Not even tried: onnxruntime would write to its process-wide log, and use the CPU.
        raise MachineError(explain_not_started(provider, runtime_version(), missing, ""))
    options = choose_options(provider, runtime_version(), threads) | options
    providers: list[Any] = [(provider, options), *([CUDA] if provider == TENSORRT else []), CPU]
    reason, session = "", None
    try:
        session = _open(path, providers, threads, record_nodes=True)
    except InvalidModelError as error:
        reason = str(error.__context__)
    if session is None or session.get_providers()[0] != provider:
        raise MachineError(explain_not_started(provider, runtime_version(), unloadable, reason))
    nodes = _count_nodes(session)
    if nodes is not None and provider not in nodes:
        raise MachineError(
            f"it supports none of the {sum(nodes.values())} nodes of {path}, which would run elsewhere; "
            "use another device"
        )
    return session


def _preload_cuda() -> list[str]:
    """Load the CUDA libraries that are installed as wheels, and return the names of those that failed to load.

    onnxruntime does this since 1.21, but reports failures by `print`. Its function is run with another `print`, because
    redirecting stdout would affect all threads of the process.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return []
    printed: list[str] = []

    def collect(*values: object, **_: object) -> None:
        printed.append(" ".join(map(str, values)))

    variables = {**preload.__globals__, "print": collect}
    # Any exception: it searches folders and loads libraries of other projects. What is missing is reported later.
    with contextlib.suppress(Exception):
        types.FunctionType(preload.__code__, variables, argdefs=preload.__defaults__)()
    return [Path(name).name for name in re.findall(r"Failed to load (\S+?):", "\n".join(printed))]


def _count_nodes(session: Any) -> dict[str, int] | None:
    try:
        assigned = session.get_provider_graph_assignment_info()
    except Exception:  # AttributeError before onnxruntime 1.24; its own classes if the session did not record it
        return None
    counts: dict[str, int] = {}
    for subgraph in assigned:
        counts[subgraph.ep_name] = counts.get(subgraph.ep_name, 0) + len(subgraph.get_nodes())
    return counts


def _open(path: Path, providers: list[Any], threads: int, record_nodes: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # A waiting pool must not occupy the core that decodes the next image.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if record_nodes:
        options.add_session_config_entry(_RECORD_NODES, "1")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InvalidModelError(f"{path}: onnxruntime opens no path that is not UTF-8; rename it") from None
    try:
        # Without fallback: it would use the CPU if the requested provider fails, and print so on stdout.
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's own classes have no common base
        reason = " ".join(str(error).split())
        system_error = _SYSTEM_ERROR.search(reason)
        if system_error is not None:
            raise OSError(int(system_error[1]), os.strerror(int(system_error[1])), str(path)) from None
        raise InvalidModelError(
            f"{path}: onnxruntime {runtime_version()} cannot open it: {reason}; export it again, or update onnxruntime"
        ) from None
    session.disable_fallback()
    return session
