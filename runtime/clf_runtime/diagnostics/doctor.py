"""`clf-run --doctor`: what this machine has, and what would be wrong with a model on it.

Whatever may not be there, or may end its process, is tried in a process of its own; this module needs none of it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from clf_runtime import __version__, machine, onnx_file, providers
from clf_runtime.diagnostics import cpu
from clf_runtime.errors import EXIT_INVALID, EXIT_MACHINE, EXIT_OK, InvalidModelError
from clf_runtime.spec import ModelSpec

# onnxruntime and numpy take so much before a model has any.
_LEAST_MEMORY_BYTES = 150_000_000

# Built in, but neither for graphs like ours nor for this machine.
_NOT_TRIED = ("azure",)

_SELF_TEST = "from clf_runtime.cli import main; main()"
_START = (
    "import sys\n"
    "from clf_runtime.errors import ClfError\n"
    "from clf_runtime.session import start\n"
    "try: start(sys.argv[1])\n"
    "except ClfError as error: sys.exit(str(error))\n"
)
_PACKAGES = {"numpy": "numpy", "Pillow": "PIL", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    said: str
    remedy: str = ""  # a command, or what else to do
    exit_code: int = EXIT_OK  # what clf-run would end with because of it

    @property
    def well(self) -> bool:
        """Whether there is nothing to be done."""
        return not self.remedy


@dataclass(frozen=True)
class Tried:
    """How a process ended, and the last line that it said."""

    works: bool
    said: str


def examine(model: Path, asked_for: bool, device: str) -> list[Finding]:
    """Look at everything that clf-run needs. `asked_for` says that a missing `model` is wrong."""
    found = [Finding("clf-edge", f"{__version__} on Python {platform.python_version()}, {sys.executable}")]
    found += [_package(name) for name in _PACKAGES]
    importable = all(each.exit_code == EXIT_OK for each in found)
    found += _wheels()
    found += [_processor(), _threads(), _memory()]
    of_model = _model(model, asked_for, found[len(_PACKAGES)].said if importable else None)
    found.append(of_model)
    if importable:
        found += _devices(model if of_model.well else None, device)
    return found


def exit_code(found: list[Finding]) -> int:
    """Give what --doctor ends with: the code of the first thing that is wrong, or 0."""
    return next((each.exit_code for each in found if each.exit_code != EXIT_OK), EXIT_OK)


def table(found: list[Finding]) -> str:
    """Say it to a person."""
    width = max(len(each.what) for each in found)
    lines = []
    for each in found:
        state = "ok" if each.well else "note" if each.exit_code == EXIT_OK else "wrong"
        lines.append(f"{state:<5}  {each.what:<{width}}  {each.said}")
        if not each.well:
            lines.append(f"{'':<5}  {'':<{width}}  → {each.remedy}")
    wrong = sum(each.exit_code != EXIT_OK for each in found)
    lines.append("all is well" if not wrong else f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong")
    return "\n".join(lines)


def as_json(found: list[Finding]) -> str:
    """Say it to a program."""
    return json.dumps({"well": exit_code(found) == EXIT_OK, "findings": [asdict(each) for each in found]}, indent=1)


def _package(name: str) -> Finding:
    tried = _tried("-c", f"import {_PACKAGES[name]} as package; print(package.__version__)")
    if tried.works:
        return Finding(name, tried.said)
    if f"No module named '{_PACKAGES[name]}'" in tried.said:
        extra = 'pip install "clf-edge[cpu]", or "clf-edge[gpu]" for CUDA'
        return Finding(name, "is not installed", extra, EXIT_MACHINE)
    remedy = f"pip install --force-reinstall {name.lower()}"
    return Finding(name, f"is installed, and cannot be imported: {tried.said}", remedy, EXIT_MACHINE)


def _wheels(nvidia: Path = Path("/dev/nvidia0")) -> Iterator[Finding]:
    installed = providers.wheels()
    names = [name for name, _ in installed]
    if len(installed) > 1:
        said = f"{' and '.join(names)} are both installed, and each has replaced files of the other"
        remedy = f'pip uninstall {" ".join(names)}, then pip install "clf-edge[cpu]" (or "clf-edge[gpu]" for CUDA)'
        yield Finding("wheels", said, remedy, EXIT_MACHINE)
    elif nvidia.exists() and names == ["onnxruntime"]:
        remedy = 'pip uninstall onnxruntime, then pip install "clf-edge[gpu]"'
        yield Finding("wheels", "there is an NVIDIA device, and onnxruntime's wheel for CPUs", remedy)


def _processor() -> Finding:
    sets = cpu.instruction_sets()
    told = "instruction sets not told by this system" if sets is None else ", ".join(sets) or "no instruction set known"
    return Finding("processor", f"{cpu.name()}: {told}")


def _threads() -> Finding:
    affinity, quota = machine.shares()
    limit = "no cgroup quota" if quota == float("inf") else f"a cgroup quota of {quota:g} cores"
    return Finding(
        "threads", f"{machine.usable_cores()}: an affinity mask of {affinity}, {limit}, {os.cpu_count()} in the machine"
    )


def _memory() -> Finding:
    left = machine.usable_memory()
    said = f"{left / 1e9:.1f} GB for this process to take"
    if left < _LEAST_MEMORY_BYTES:
        remedy = (
            f"end other programs, or raise the cgroup's limit: it takes {_LEAST_MEMORY_BYTES / 1e6:.0f} MB and more"
        )
        return Finding("memory", said, remedy, EXIT_MACHINE)
    return Finding("memory", said)


def _model(path: Path, asked_for: bool, runtime: str | None) -> Finding:
    """Look at the model's file, for the onnxruntime of version `runtime`, where there is one."""
    if not path.exists():
        said = f"{path}: there is none" + ("" if asked_for else ", so devices are tried with a small graph")
        return Finding("model", said, "make one with clf-export", EXIT_INVALID if asked_for else EXIT_OK)
    try:
        file = onnx_file.read(path)
        spec = ModelSpec.from_json(file.metadata[onnx_file.SPEC_KEY], str(path))
    except InvalidModelError as refused:
        return Finding("model", str(refused), "copy it again, or make it anew with clf-export", EXIT_INVALID)
    except OSError as error:
        said = f"{path}: {(error.strerror or str(error)).lower()}"
        return Finding("model", said, f"chmod +r {path}, as its owner", EXIT_MACHINE)
    needed = file.oldest_runtime
    said = f"{path}: {spec.architecture}, {len(spec.labels)} labels, {file.size_bytes / 1e6:.2f} MB, digest fits"
    if runtime is not None and needed is not None and _numbers(runtime) < _numbers(needed):
        remedy = f'pip install --upgrade "onnxruntime>={needed}", or clf-export --min-runtime {runtime}'
        return Finding("model", f"{said}; it needs onnxruntime {needed}, here is {runtime}", remedy, EXIT_INVALID)
    return Finding("model", f"{said}, needs onnxruntime {needed or 'newer than any known here'}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _devices(model: Path | None, device: str) -> Iterator[Finding]:
    """Try every provider that is built in, and the one that was named."""
    told = _tried("-c", "import json; from clf_runtime import session; print(json.dumps(session.providers_built_in()))")
    if not told.works:
        yield Finding("devices", told.said, 'pip install --force-reinstall "clf-edge[cpu]"', EXIT_MACHINE)
        return
    built_in = [providers.short(provider) for provider in json.loads(told.said)]
    named = [] if device == "auto" else [device]
    for name in dict.fromkeys([*named, *(each for each in built_in[::-1] if each not in _NOT_TRIED)]):
        yield _device(name, model, wanted=name in (*named, "cpu"))


def _device(name: str, model: Path | None, wanted: bool) -> Finding:
    if model is None:
        tried = _tried("-c", _START, name)
    else:
        tried = _tried("-c", _SELF_TEST, "--self-test", "--model", str(model), "--device", name)
    said = tried.said.removeprefix("clf-run: ").removeprefix(f"--device {name}: ")
    if tried.works:
        return Finding(name, f"works: {said.partition(': ')[2]}" if model else "works")
    reason, _, remedy = said.rpartition("; ")
    code = EXIT_MACHINE if "FAILED" not in said and "refused" not in said else EXIT_INVALID
    return Finding(
        name,
        f"does not work: {reason or said}",
        remedy if reason else "use another device",
        code if wanted else EXIT_OK,
    )


def _tried(*arguments: str) -> Tried:
    """Run Python with `arguments`, to its end."""
    # Without what lies in the folder that a person is in: a file of theirs may be called like a module.
    surroundings = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, errors="replace", check=False, env=surroundings
    )
    lines = [
        line.strip() for line in (done.stdout if not done.returncode else done.stderr).splitlines() if line.strip()
    ]
    if done.returncode < 0:
        ended = signal.Signals(-done.returncode).name
        return Tried(False, f"its process ends with {ended}; install a build that is made for this processor")
    # A self-test that fails says so on stdout.
    last = lines[-1] if lines else (done.stdout.strip().splitlines() or ["it says nothing"])[-1]
    return Tried(done.returncode == 0, last)
