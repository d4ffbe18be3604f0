"""Execution providers by their short names: what each is asked with, which wheel brings it, why it does not start."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from clf_runtime.errors import UsageError

_SUFFIX = "ExecutionProvider"
_NVIDIA = ("cuda", "tensorrt")

# Short name → the option that NAME:X sets. Source: https://onnxruntime.ai/docs/execution-providers/
_SELECTS = {
    "cuda": "device_id",
    "tensorrt": "device_id",
    "nvtensorrtrtx": "device_id",
    "rocm": "device_id",
    "migraphx": "device_id",
    "dml": "device_id",
    "cann": "device_id",
    "openvino": "device_type",
}

# Short name → the wheel that brings it instead of onnxruntime. Others come with a build of one's own.
_WHEELS = {
    "cuda": "clf-edge[gpu]",
    "tensorrt": "clf-edge[gpu]",
    "rocm": "onnxruntime-rocm",
    "migraphx": "onnxruntime-migraphx",
    "dml": "onnxruntime-directml",
    "openvino": "onnxruntime-openvino",
    "qnn": "onnxruntime-qnn",
    "cann": "onnxruntime-cann",
}

# What a missing library's name begins with → what brings it.
_LIBRARIES = (
    (("libcuda.", "nvcuda."), "the NVIDIA driver, until nvidia-smi lists the device"),
    (("libnvinfer", "nvinfer", "libnvonnxparser"), "TensorRT: pip install tensorrt"),
    (("libcu", "libnv", "cu", "nv"), 'CUDA and cuDNN: pip install "onnxruntime-gpu[cuda,cudnn]=={version}"'),
    (("libamdhip", "librocm", "libmigraphx"), "ROCm"),
    (("libopenvino", "openvino", "libtbb"), "OpenVINO: pip install openvino"),
)


def short(provider: str) -> str:
    """Give the name that --device takes: cuda for CUDAExecutionProvider."""
    return provider.removesuffix(_SUFFIX).lower()


def asked_for(device: str, known: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Parse NAME or NAME:X: the provider by onnxruntime's name, and its options. `known` are all that there are.

    Raises UsageError.
    """
    name, colon, selected = device.partition(":")
    providers = {short(provider): provider for provider in known}
    if name.lower() not in providers:
        others = ", ".join(sorted(set(providers) - {"cpu", "cuda"}))
        raise UsageError(f"--device {device}: unknown; expected auto, cpu, cuda or cuda:N, or one of {others}")
    if not colon:
        return providers[name.lower()], {}
    option = _SELECTS.get(name.lower())
    if option is None:
        raise UsageError(f"--device {device}: {name} takes nothing behind a colon")
    if not selected or (option == "device_id" and not re.fullmatch(r"\d{1,4}", selected)):
        expected = "a number" if option == "device_id" else "CPU, GPU or NPU"
        raise UsageError(f"--device {device}: expected {expected} behind the colon")
    return providers[name.lower()], {option: selected}


def not_built_in(provider: str, version: str) -> str:
    """Say that the installed onnxruntime was built without a provider, and what to do."""
    wheel = _WHEELS.get(short(provider))
    installed = " and ".join(name for name, _ in wheels()) or "onnxruntime"
    if wheel is None:
        remedy = "it takes a build of onnxruntime for this device"
    else:
        remedy = f'pip uninstall {installed.replace(" and ", " ")}, then pip install "{wheel}"'
    return f"this onnxruntime {version} is built without {short(provider)}; {remedy}{both_told()}"


def not_started(provider: str, version: str, folder: Path, printed: str, raised: str) -> str:
    """Say why a provider that is built in does not start here.

    `folder` is where onnxruntime keeps its libraries, `printed` what it printed and `raised` what it raised.
    """
    missing = _missing_libraries(provider, folder, printed)
    if missing:
        brought = dict.fromkeys(_brought_by(name, version) for name in missing)
        are = "this library is" if len(missing) == 1 else "these libraries are"
        reason = f"but {are} missing: {', '.join(missing)}; install {', and '.join(brought)}"
    elif raised:
        reason = f"but it does not start here: {' '.join(raised.split())}"
    else:
        hint = "; look at nvidia-smi" if short(provider) in _NVIDIA else ""
        reason = f"but it does not start here, and does not say why{hint}"
    return f"onnxruntime {version} has {short(provider)}, {reason}{both_told()}"


def wheels() -> list[tuple[str, str]]:
    """Give name and version of every installed wheel that owns the module onnxruntime: one, if all is well."""
    from importlib import metadata

    found = {}
    for wheel in metadata.distributions():
        name = (wheel.metadata["Name"] or "").lower()
        if name.startswith(("onnxruntime", "ort-")) and wheel.read_text("RECORD") is not None:
            text = wheel.read_text("RECORD") or ""
            if "\nonnxruntime/__init__.py," in f"\n{text}":
                found[name] = wheel.version
    return sorted(found.items())


def both_told() -> str:
    """Say, where several wheels own the module, that they do; else nothing."""
    installed = wheels()
    if len(installed) < 2:
        return ""
    names = [name for name, _ in installed]
    return (
        f"; {' and '.join(f'{name} {version}' for name, version in installed)} are both installed and own the same "
        f"module, so each has replaced files of the other: pip uninstall {' '.join(names)}, then install one of them"
    )


def _missing_libraries(provider: str, folder: Path, printed: str) -> list[str]:
    """Name the libraries that `provider` needs and that cannot be loaded."""
    named = [Path(name).name for name in re.findall(r"Failed to load (\S+?):", printed)]
    own = {
        "win32": f"onnxruntime_providers_{short(provider)}.dll",
        "darwin": f"libonnxruntime_providers_{short(provider)}.dylib",
    }
    library = folder / own.get(sys.platform, f"libonnxruntime_providers_{short(provider)}.so")
    tried = [str(library)] if library.exists() else []
    if short(provider) in _NVIDIA:
        tried.append("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    for each in tried:
        named += _cannot_be_loaded(each)
    return list(dict.fromkeys(named))


def _cannot_be_loaded(library: str) -> list[str]:
    """Give the name of the first library that `library` needs, itself included, and that is not there."""
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError as error:
        found = re.match(r"(\S+): cannot open shared object file", str(error))
        return [found.group(1)] if found else []
    return []


def _brought_by(library: str, version: str) -> str:
    for starts, what in _LIBRARIES:
        if library.startswith(starts):
            return what.format(version=version)
    return "what brings them"
