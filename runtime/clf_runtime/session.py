"""The one module that imports onnxruntime: opens a model on a device and runs batches of pixels."""

from __future__ import annotations

import base64
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from clf_runtime.errors import InvalidModelError, MachineError
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.preprocess import UInt8Array

Float32Array = npt.NDArray[np.float32]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_FATAL_ONLY = 4  # onnxruntime's log would tell in its words what we tell in ours
# The ONNX file of y = x @ [[1, 2], [3, 4]], float32, opset 13, IR 8; a test makes it anew.
_PRODUCT = (
    "CAg6XQoRCgF4CgF3EgF5IgZNYXRNdWwSAWcqGwgCCAIQASIQAACAPwAAAEAAAEBAAACAQEIBd1oTCgF4Eg4KDAgBEggKAggBCgII"
    "AmITCgF5Eg4KDAgBEggKAggBCgIIAkIECgAQDQ=="
)
_RECORD_NODES = "session.record_ep_graph_assignment_info"  # from onnxruntime 1.24 on


class Session:
    """A model opened on one device. Safe to `run` from several threads."""

    def __init__(self, model: OnnxFile, device: str, threads: int, record_nodes: bool = False) -> None:
        """Open `model` on `device`, with `threads` for one batch.

        `device` is auto, cpu, cuda, cuda:N, or another provider of onnxruntime by its short name. Any but auto
        works or is refused. `record_nodes` has `nodes` tell where each node of the graph runs.

        Raises MachineError (the device does not work here), UsageError (unknown device), InvalidModelError.
        """
        _refuse_too_old(model)
        self.warning = ""  # why auto did not take what is better, where it is built in
        provider, selected = _wanted(device)
        if provider == CPU:
            self._session = _opened(model.path, [CPU], threads, record_nodes)
        else:
            try:
                self._session = _accelerated(model.path, provider, selected, threads)
            except MachineError as unable:
                # First this: where the CPU refuses the model too, it is the model, and not the device.
                self._session = _opened(model.path, [CPU], threads, record_nodes)
                if device != "auto":
                    raise MachineError(f"--device {device}: {unable}") from None
                self.warning = f"--device auto takes the CPU: {unable}"
        _refuse_other_signature(model.path, self._session)
        self.provider: str = self._session.get_providers()[0]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of the graph's input."""
        return tuple(self._session.get_inputs()[0].shape[1:])

    @property
    def classes(self) -> int:
        """The number of classes that the graph gives."""
        return int(self._session.get_outputs()[0].shape[1])

    @property
    def nodes(self) -> dict[str, int] | None:
        """How many nodes of the graph each provider runs; None where this onnxruntime does not tell."""
        return _nodes(self._session)

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels).

        Raises MachineError where the device fails, with a batch too large for its memory, say.
        """
        try:
            logits, probabilities = self._session.run(["logits", "probabilities"], {"image": pixels})
        except Exception as error:
            if type(error).__name__ not in _FAILURES_OF_THE_DEVICE:
                raise
            reason = " ".join(str(error).split())
            raise MachineError(
                f"{self.provider} failed on a batch of {len(pixels)}: {reason}; "
                "try a smaller --batch-size, or --device cpu"
            ) from None
        return logits, probabilities


# Classes of onnxruntime without a common base: neither a wrong argument nor a bug.
_FAILURES_OF_THE_DEVICE = frozenset(("EPFail", "Fail", "RuntimeException"))


def runtime_version() -> str:
    """Give the version of the onnxruntime that is installed."""
    return str(onnxruntime.__version__)


def providers_built_in() -> list[str]:
    """Give what the installed onnxruntime was built with, which does not say that it works."""
    return [str(provider) for provider in onnxruntime.get_available_providers()]


def start(device: str) -> None:
    """Have `device` multiply two small matrices, to see whether it works. Raises UsageError, MachineError."""
    import tempfile

    provider, selected = _wanted(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(base64.b64decode(_PRODUCT))
        on_cpu = provider == CPU
        session = _opened(path, [CPU], 1, False) if on_cpu else _accelerated(path, provider, selected, 1)
        (product,) = session.run(["y"], {"x": np.asarray([[1, 1]], np.float32)})
    if product.tolist() != [[4, 6]]:
        raise MachineError(f"--device {device}: it gets a product of small matrices wrong: {product.tolist()}")


def _refuse_other_signature(path: Path, session: Any) -> None:
    inputs = [(value.name, value.type, len(value.shape)) for value in session.get_inputs()]
    outputs = {(value.name, value.type, len(value.shape)) for value in session.get_outputs()}
    wanted = {("logits", "tensor(float)", 2), ("probabilities", "tensor(float)", 2)}
    if inputs != [("image", "tensor(uint8)", 4)] or outputs != wanted:
        raise InvalidModelError(
            f"{path}: refused: its graph takes {inputs} and gives {sorted(outputs)}; "
            "expected uint8 image to float logits and probabilities; export it with clf-export"
        )


def _wanted(device: str) -> tuple[str, dict[str, str]]:
    """Give the provider to try, and its options. Raises UsageError, MachineError."""
    if device == "cpu":
        return CPU, {}
    built_in = providers_built_in()
    if device == "auto":
        return CUDA if CUDA in built_in else CPU, {}
    from clf_runtime.providers import asked_for, not_built_in

    provider, selected = asked_for(device, [*onnxruntime.get_all_providers(), *built_in])
    if provider not in built_in:
        raise MachineError(f"--device {device}: {not_built_in(provider, runtime_version())}")
    return provider, selected


def _accelerated(path: Path, provider: str, selected: dict[str, str], threads: int) -> Any:
    """Open `path` on what is no CPU, or raise MachineError with the reason."""
    from clf_runtime.providers import not_started, short

    # OpenVINO has threads of its own.
    options = selected | ({"num_of_threads": str(threads)} if short(provider) == "openvino" else {})
    providers: list[Any] = [(provider, options), *([CUDA] if provider == TENSORRT else []), CPU]
    printed, raised, session = io.StringIO(), "", None
    with contextlib.redirect_stdout(printed):  # onnxruntime prints there what it cannot load
        if provider in (CUDA, TENSORRT) and hasattr(onnxruntime, "preload_dlls"):
            with contextlib.suppress(Exception):
                onnxruntime.preload_dlls()  # finds the CUDA libraries that come as wheels, from 1.21 on
        try:
            session = _opened(path, providers, threads, record_nodes=True)
        except InvalidModelError as error:
            raised = str(error.__context__)
    if session is None or session.get_providers()[0] != provider:
        folder = Path(onnxruntime.__file__).parent / "capi"
        raise MachineError(not_started(provider, runtime_version(), folder, printed.getvalue(), raised))
    nodes = _nodes(session)
    if nodes is not None and provider not in nodes:
        raise MachineError(
            f"it takes none of the {sum(nodes.values())} nodes of {path}: all would run elsewhere; name another device"
        )
    return session


def _nodes(session: Any) -> dict[str, int] | None:
    try:
        assigned = session.get_provider_graph_assignment_info()
    except Exception:  # older than 1.24, or not recorded
        return None
    counted: dict[str, int] = {}
    for subgraph in assigned:
        counted[subgraph.ep_name] = counted.get(subgraph.ep_name, 0) + len(subgraph.get_nodes())
    return counted


def _opened(path: Path, providers: list[Any], threads: int, record_nodes: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # A waiting pool must not burn the core that decodes the next image.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if record_nodes:
        options.add_session_config_entry(_RECORD_NODES, "1")
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    try:
        # Without fallback: it would go on with the CPU where something else was asked for, and say so on stdout.
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's own classes have no common base
        reason = " ".join(str(error).split())
        raise InvalidModelError(
            f"{path}: refused by onnxruntime {runtime_version()}: {reason}; export it again, or update onnxruntime"
        ) from None
    session.disable_fallback()
    return session


def _refuse_too_old(model: OnnxFile) -> None:
    needed = model.oldest_runtime
    if needed is None or _numbers(runtime_version()) >= _numbers(needed):
        return
    raise InvalidModelError(
        f"{model.path}: refused: opset {model.opset} and IR {model.ir_version} need onnxruntime {needed} or later, "
        f"here is {runtime_version()}; update onnxruntime, or export for this version"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
