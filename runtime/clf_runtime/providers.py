"""Execution providers by their short names: their options, the wheels that include them, why one does not start."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from clf_runtime import libraries
from clf_runtime.errors import UsageError
from clf_runtime.onnx_file import parse_version

_SUFFIX = "ExecutionProvider"
_NVIDIA = ("cuda", "tensorrt")

# Short name → the option that NAME:X sets. Source: https://onnxruntime.ai/docs/execution-providers/
_OPTION_AFTER_COLON = {
    "cuda": "device_id",
    "tensorrt": "device_id",
    "nvtensorrtrtx": "device_id",
    "rocm": "device_id",
    "migraphx": "device_id",
    "dml": "device_id",
    "cann": "device_id",
    "openvino": "device_type",
}

# Short name → the wheel that includes it, to be installed instead of onnxruntime. Others need a custom build.
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

# Prefixes of a missing library's name → what contains it.
_LIBRARIES = (
    (("libcuda.", "nvcuda."), "the NVIDIA driver (nvidia-smi then lists the device)"),
    (("libnvinfer", "nvinfer", "libnvonnxparser"), "TensorRT: pip install tensorrt"),
    (("libcu", "libnv", "cu", "nv"), 'CUDA and cuDNN: pip install "onnxruntime-gpu[cuda,cudnn]=={version}"'),
    (("libamdhip", "librocm", "libmigraphx"), "ROCm"),
    (("libopenvino", "openvino", "libtbb"), "OpenVINO: pip install openvino"),
)


def short_name(provider: str) -> str:
    """Return the name that --device takes: cuda for CUDAExecutionProvider."""
    return provider.removesuffix(_SUFFIX).lower()


def parse_device(device: str, known: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Parse NAME or NAME:X.

    Args:
        device: The device, such as `cuda:1` or `openvino:GPU`.
        known: All execution providers, by onnxruntime's names.

    Returns:
        The provider by onnxruntime's name, and its options.

    Raises:
        UsageError: The name is unknown, or what follows the colon is invalid.
    """
    name, colon, value = device.partition(":")
    providers = {short_name(provider): provider for provider in known}
    if name.lower() not in providers:
        others = ", ".join(sorted(set(providers) - {"cpu", "cuda"}))
        raise UsageError(f"--device {device}: unknown device; expected auto, cpu, cuda or cuda:N, or one of {others}")
    if not colon:
        return providers[name.lower()], {}
    option = _OPTION_AFTER_COLON.get(name.lower())
    if option is None:
        raise UsageError(f"--device {device}: {name} does not take a value after a colon")
    if not value or (option == "device_id" and not re.fullmatch(r"\d{1,4}", value)):
        expected = "a number" if option == "device_id" else "CPU, GPU or NPU"
        raise UsageError(f"--device {device}: expected {expected} after the colon")
    return providers[name.lower()], {option: value}


def choose_options(provider: str, version: str, threads: int) -> dict[str, str]:
    """Return the options of a provider with which it gives the CPU's answers, as far as it can.

    EfficientNet-Lite0 on an H100: logits are within 3.6e-6 of the CPU's in float32, and within 5e-3 with TF32, which
    onnxruntime uses by default and which rounds the factors of a product to 10 bits. An image takes no less time with
    it. The default search for cuDNN's algorithms is exhaustive, and takes seconds for each new batch size.

    Args:
        provider: onnxruntime's name of the provider.
        version: The version of onnxruntime.
        threads: The number of threads for one batch.
    """
    name = short_name(provider)
    if name == "openvino":  # It has threads of its own.
        return {"num_of_threads": str(threads)}
    if name != "cuda":
        return {}
    # Older releases reject the option; they leave the choice to the environment variable NVIDIA_TF32_OVERRIDE.
    exact = {"use_tf32": "0"} if parse_version(version) >= (1, 18) else {}
    return {"cudnn_conv_algo_search": "HEURISTIC", **exact}


def explain_not_included(provider: str, version: str) -> str:
    """Return the message for a provider that the installed onnxruntime does not include."""
    wheel = _WHEELS.get(short_name(provider))
    if wheel is None:
        remedy = "install a build of onnxruntime for this device"
    else:
        installed = " ".join(name for name, _ in installed_wheels()) or "onnxruntime"
        remedy = f'pip uninstall {installed}, then pip install "{wheel}"'
    return f"onnxruntime {version} does not include {short_name(provider)}; {remedy}{explain_conflict()}"


def explain_not_started(provider: str, version: str, missing: Sequence[str], reason: str) -> str:
    """Return the message for a provider that is included but does not start.

    Args:
        provider: onnxruntime's name of the provider.
        version: The version of onnxruntime.
        missing: Names of libraries that are missing.
        reason: What onnxruntime raised, if anything.
    """
    if missing:
        remedies = dict.fromkeys(_package_with(name, version) for name in missing)
        noun = "library is" if len(missing) == 1 else "libraries are"
        problem = f"but the following {noun} missing: {', '.join(missing)}; install {', and '.join(remedies)}"
    elif reason:
        problem = f"but it does not start: {' '.join(reason.split())}"
    else:
        hint = "; check that nvidia-smi lists the device" if short_name(provider) in _NVIDIA else ""
        problem = f"but it does not start, for an unknown reason{hint}"
    return f"onnxruntime {version} includes {short_name(provider)}, {problem}{explain_conflict()}"


def installed_wheels() -> list[tuple[str, str]]:
    """Return name and version of each installed wheel that contains the module onnxruntime; normally exactly one."""
    from importlib import metadata

    found = {}
    for wheel in metadata.distributions():
        name = (wheel.metadata["Name"] or "").lower()
        if name.startswith(("onnxruntime", "ort-")):
            record = wheel.read_text("RECORD") or ""
            if "\nonnxruntime/__init__.py," in f"\n{record}":
                found[name] = wheel.version
    return sorted(found.items())


def explain_conflict() -> str:
    """Return a warning to append to a message if several wheels contain the module onnxruntime; otherwise nothing."""
    wheels = installed_wheels()
    if len(wheels) < 2:
        return ""
    names = [name for name, _ in wheels]
    return (
        f"; {' and '.join(f'{name} {version}' for name, version in wheels)} are both installed and contain the same "
        f"module, so each has overwritten files of the other: pip uninstall {' '.join(names)}, then install one of them"
    )


def find_missing_libraries(provider: str, folder: Path) -> list[str]:
    """Return the names of the libraries that a provider needs and that are not on this machine.

    Args:
        provider: onnxruntime's name of the provider.
        folder: Where onnxruntime keeps the libraries of its providers.
    """
    missing = libraries.missing_dependencies(folder / f"libonnxruntime_providers_{short_name(provider)}.so")
    if short_name(provider) in _NVIDIA:
        driver = libraries.load("libcuda.so.1")  # older releases load it themselves, later
        missing += [driver] if driver is not None and driver not in missing else []
    return missing


def _package_with(library: str, version: str) -> str:
    for prefixes, package in _LIBRARIES:
        if library.startswith(prefixes):
            return package.format(version=version)
    return "the packages that contain them"
