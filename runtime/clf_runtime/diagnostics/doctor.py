"""`clf-run --doctor`: what this machine has, and what prevents a model from running on it.

Whatever may be missing, or may end its process, is tried in a process of its own; this module needs none of it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from clf_runtime import __version__, machine, onnx_file, providers
from clf_runtime.diagnostics import cpu
from clf_runtime.diagnostics.probe import Report
from clf_runtime.errors import EXIT_INVALID, EXIT_MACHINE, EXIT_OK, InvalidModelError, escape, format_reason
from clf_runtime.onnx_file import parse_version

# onnxruntime and numpy need this much before a model is loaded.
_MIN_MEMORY_BYTES = 150_000_000

# Included in onnxruntime, but not for graphs like ours.
_NOT_TRIED = ("azure",)

# Package → import name.
_PACKAGES = {"numpy": "numpy", "Pillow": "PIL", "onnxruntime": "onnxruntime"}

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    message: str
    status: Status = "ok"
    remedy: str = ""  # a command, or what else to do
    exit_code: int = EXIT_OK  # what clf-run would exit with because of it


def examine(model: Path, is_named: bool, device: str, keys: Sequence[Path] = ()) -> list[Finding]:
    """Check everything that clf-run needs.

    Args:
        model: The model file.
        is_named: Whether it is an error if this file does not exist.
        device: The device that has to work; auto for none but the CPU.
        keys: Public keys, one of which must have signed the model.
    """
    packages = [_check_package(name) for name in _PACKAGES]
    has_packages = all(finding.status == "ok" for finding in packages)
    of_model = _check_model(model, is_named, packages[-1].message if has_packages else None, keys)
    findings = [
        Finding("clf-edge", f"{__version__} on Python {platform.python_version()}, {sys.executable}"),
        *packages,
        *_check_wheels(),
        _check_processor(),
        _check_threads(),
        _check_memory(),
        of_model,
    ]
    if has_packages:
        findings += _check_devices(model if of_model.status == "ok" else None, device)
    return findings


def exit_code(findings: list[Finding]) -> int:
    """Return the exit code of --doctor: that of the first problem, or 0."""
    return next((finding.exit_code for finding in findings if finding.status == "wrong"), EXIT_OK)


def table(findings: list[Finding]) -> str:
    """Return the findings as text."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<5}  {finding.name:<{width}}  {escape(finding.message)}")
        if finding.remedy:
            lines.append(f"{'':<5}  {'':<{width}}  → {escape(finding.remedy)}")
    problems = sum(finding.status == "wrong" for finding in findings)
    lines.append(f"{problems or 'no'} {'problem' if problems == 1 else 'problems'} found")
    return "\n".join(lines)


def to_json(findings: list[Finding]) -> str:
    """Return the findings as JSON."""
    content = {"ok": exit_code(findings) == EXIT_OK, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=1)


def _check_package(name: str) -> Finding:
    report = _probe("package", _PACKAGES[name])
    if report.is_missing:
        remedy = 'pip install "clf-edge[cpu]", or "clf-edge[gpu]" for CUDA'
        return Finding(name, "not installed", "wrong", remedy, report.exit_code)
    if report.exit_code:
        remedy = f"pip install --force-reinstall {name.lower()}"
        return Finding(name, f"installed, but cannot be imported: {report.message}", "wrong", remedy, report.exit_code)
    return Finding(name, report.message)


def _check_wheels(nvidia: Path = Path("/dev/nvidia0")) -> Iterator[Finding]:
    names = [name for name, _ in providers.installed_wheels()]
    if len(names) > 1:
        message = f"{' and '.join(names)} are both installed, and each has overwritten files of the other"
        remedy = f'pip uninstall {" ".join(names)}, then pip install "clf-edge[cpu]" (or "clf-edge[gpu]" for CUDA)'
        yield Finding("wheels", message, "wrong", remedy, EXIT_MACHINE)
    elif nvidia.exists() and names == ["onnxruntime"]:
        remedy = 'pip uninstall onnxruntime, then pip install "clf-edge[gpu]"'
        yield Finding("wheels", "this machine has an NVIDIA device, but onnxruntime is the CPU wheel", "note", remedy)


def _check_processor() -> Finding:
    sets = cpu.instruction_sets()
    text = "instruction sets unknown" if sets is None else ", ".join(sets) or "none of the known instruction sets"
    return Finding("processor", f"{cpu.name()}: {text}")


def _check_threads() -> Finding:
    affinity, quota = machine.core_limits()
    limit = "no cgroup quota" if quota == float("inf") else f"a cgroup quota of {quota:g} cores"
    return Finding(
        "threads", f"{machine.usable_cores()}: CPU affinity {affinity}, {limit}, {os.cpu_count()} in the machine"
    )


def _check_memory() -> Finding:
    available = machine.usable_memory()
    message = f"{available / 1e9:.1f} GB available to this process"
    if available < _MIN_MEMORY_BYTES:
        remedy = f"end other programs, or raise the cgroup limit: at least {_MIN_MEMORY_BYTES / 1e6:.0f} MB are needed"
        return Finding("memory", message, "wrong", remedy, EXIT_MACHINE)
    return Finding("memory", message)


def _check_model(path: Path, is_named: bool, runtime: str | None, keys: Sequence[Path] = ()) -> Finding:
    """Check the model file, also against the version of onnxruntime, if it is installed."""
    if not path.exists():
        if is_named:
            return Finding("model", f"{path}: not found", "wrong", "create one with clf-export", EXIT_INVALID)
        message = f"{path}: not found, so devices are tried with a small graph"
        return Finding("model", message, "note", "create one with clf-export")
    try:
        file = onnx_file.read_trusted(path, keys)
    except InvalidModelError as error:
        return Finding("model", str(error), "wrong", "copy it again, or create it again with clf-export", EXIT_INVALID)
    except OSError as error:
        message = f"{path}: {format_reason(error)}"
        return Finding("model", message, "wrong", f"chmod +r {path}, as its owner", EXIT_MACHINE)
    required = file.oldest_runtime
    size = f"{file.size_bytes / 1e6:.2f} MB"
    message = f"{path}: {file.spec.architecture}, {len(file.spec.labels)} labels, {size}, digest matches"
    if runtime is not None and required is not None and parse_version(runtime) < parse_version(required):
        remedy = f'pip install --upgrade "onnxruntime>={required}", or clf-export --min-runtime {runtime}'
        message += f"; needs onnxruntime {required}, found {runtime}"
        return Finding("model", message, "wrong", remedy, EXIT_INVALID)
    return Finding("model", f"{message}, needs onnxruntime {required or 'newer than any known release'}")


def _check_devices(model: Path | None, device: str) -> Iterator[Finding]:
    """Try every provider that is included, and the device that is named."""
    report = _probe("providers")
    if report.exit_code:
        remedy = 'pip install --force-reinstall "clf-edge[cpu]"'
        yield Finding("devices", report.message, "wrong", remedy, report.exit_code)
        return
    named = [] if device == "auto" else [device]
    included = [name for name in reversed(report.names) if name not in _NOT_TRIED]
    for name in dict.fromkeys([*named, *included]):
        yield _check_device(name, model, is_required=name in (*named, "cpu"))


def _check_device(name: str, model: Path | None, is_required: bool) -> Finding:
    report = _probe("device", name) if model is None else _probe("model", str(model), name)
    message = report.message.removeprefix(f"--device {name}: ")
    if report.exit_code == EXIT_OK:
        return Finding(name, f"works: {message}" if message else "works")
    # Our messages end in what to do.
    reason, _, remedy = message.rpartition("; ")
    message, remedy = f"does not work: {reason or message}", remedy if reason else "use another device"
    return (
        Finding(name, message, "wrong", remedy, report.exit_code)
        if is_required
        else Finding(name, message, "note", remedy)
    )


def _probe(*arguments: str) -> Report:
    """Run a probe in a process of its own, and return its report, or one about how its process ended."""
    # Without the current folder on the module path: a file in it may be named like a module.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "clf_runtime.diagnostics.probe", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if process.returncode == 0:
        return Report.from_json(process.stdout.splitlines()[-1])
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return Report(EXIT_MACHINE, f"its process was ended by {name}; install a build for this processor")
    lines = process.stderr.split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return Report(EXIT_MACHINE, last or f"its process ended with exit code {process.returncode}")
