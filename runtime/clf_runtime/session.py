"""The one module that imports onnxruntime: opens a model on a device and runs batches of pixels."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from clf_runtime.errors import MachineUnable, ModelRefused
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.preprocess import UInt8Array

Float32Array = npt.NDArray[np.float32]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_FATAL_ONLY = 4  # onnxruntime's log would tell in its words what we tell in ours


class Session:
    """A model opened on one device. Safe to `run` from several threads."""

    def __init__(self, model: OnnxFile, device: str, threads: int) -> None:
        """Open `model` on `device` (auto, cpu, cuda or cuda:N), with `threads` for one batch.

        Raises MachineUnable, where cuda was asked for and does not work, and ModelRefused.
        """
        _refuse_too_old(model)
        self._session = _opened(model.path, _providers(device), threads)
        _refuse_other_signature(model.path, self._session)
        self.provider: str = self._session.get_providers()[0]
        if device.startswith("cuda") and self.provider != CUDA:
            raise MachineUnable(f"--device {device}: {_why_no_cuda()}")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of the graph's input."""
        return tuple(self._session.get_inputs()[0].shape[1:])

    @property
    def classes(self) -> int:
        """The number of classes that the graph gives."""
        return int(self._session.get_outputs()[0].shape[1])

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        logits, probabilities = self._session.run(["logits", "probabilities"], {"image": pixels})
        return logits, probabilities


def runtime_version() -> str:
    """Give the version of the onnxruntime that is installed."""
    return str(onnxruntime.__version__)


def _refuse_other_signature(path: Path, session: Any) -> None:
    inputs = [(value.name, value.type, len(value.shape)) for value in session.get_inputs()]
    outputs = {(value.name, value.type, len(value.shape)) for value in session.get_outputs()}
    wanted = {("logits", "tensor(float)", 2), ("probabilities", "tensor(float)", 2)}
    if inputs != [("image", "tensor(uint8)", 4)] or outputs != wanted:
        raise ModelRefused(
            f"{path}: refused: its graph takes {inputs} and gives {sorted(outputs)}; "
            "expected uint8 image to float logits and probabilities; export it with clf-export"
        )


def _opened(path: Path, providers: list[Any], threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # A waiting pool must not burn the core that decodes the next picture.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own classes have no common base
        reason = " ".join(str(error).split())
        raise ModelRefused(
            f"{path}: refused by onnxruntime {runtime_version()}: {reason}; export it again, or update onnxruntime"
        ) from None


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return [CPU]
    index = re.fullmatch(r"cuda(?::(\d+))?", device)
    if device != "auto" and index is None:
        raise MachineUnable(f"--device {device}: unknown; expected auto, cpu, cuda or cuda:N")
    if CUDA not in onnxruntime.get_available_providers():
        if device == "auto":
            return [CPU]
        raise MachineUnable(f"--device {device}: {_why_no_cuda()}")
    if hasattr(onnxruntime, "preload_dlls"):  # finds the CUDA libraries that come as wheels, from 1.21 on
        with contextlib.suppress(Exception):
            onnxruntime.preload_dlls()
    return [(CUDA, {"device_id": int(index.group(1) or 0) if index else 0}), CPU]


def _why_no_cuda() -> str:
    if CUDA not in onnxruntime.get_available_providers():
        return (
            f"this onnxruntime {runtime_version()} is built without CUDA; "
            'pip uninstall onnxruntime, then pip install "clf-edge[gpu]"'
        )
    return (
        f"onnxruntime {runtime_version()} has CUDA, but could not start it here; look at nvidia-smi, and whether "
        "the CUDA and cuDNN libraries that it was built for are installed"
    )


def _refuse_too_old(model: OnnxFile) -> None:
    needed = model.oldest_runtime
    if needed is None or _numbers(runtime_version()) >= _numbers(needed):
        return
    raise ModelRefused(
        f"{model.path}: refused: opset {model.opset} and IR {model.ir_version} need onnxruntime {needed} or later, "
        f"here is {runtime_version()}; update onnxruntime, or export for this version"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
