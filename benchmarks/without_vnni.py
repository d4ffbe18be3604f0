"""INT8 beside FP32 as on a processor with AVX2, and without AVX-512 and VNNI: onnxruntime is told that this one is so.

usage: without_vnni.py ARTIFACTS...

Each folder has a model.onnx and a model.int8.onnx. In a copy of onnxruntime, each `cpuid` instruction becomes a trap,
whose handler answers what the processor says, without AVX-512, VNNI and AMX; so the kernels for AVX2 are taken,
at this machine's speed. Needs x86-64 Linux, cc, objdump and readelf. Latencies are medians, both files in turn.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from measure import keep

from clf_export.latency import medians_ms
from clf_runtime import Classifier
from clf_runtime.selftest import replay

# Bits by Intel's manual (volume 2, CPUID, leaf 7): AVX512*, *_VNNI, *_BF16, AMX.
_HANDLER = """
#define _GNU_SOURCE
#include <signal.h>
#include <ucontext.h>

int asked = 0;

static void answer(int signal, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned leaf = registers[REG_RAX], part = registers[REG_RCX], a = leaf, b, c = part, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (leaf == 7 && part == 0) {
        b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
        c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
        d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
    }
    if (leaf == 7 && part == 1) {
        a &= ~(1u << 4 | 1u << 5 | 1u << 21 | 1u << 23);
        d &= ~(1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19);
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    asked++;
}

__attribute__((constructor)) static void install(void)
{
    struct sigaction action = {0};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGTRAP, &action, 0);
}
"""
_CPUID, _TRAP = bytes.fromhex("0FA2"), bytes.fromhex("CC90")  # int3, nop


def prepared(folder: Path) -> dict[str, str]:
    """Put the handler and the changed copy into `folder`; gives the environment of a process that uses them."""
    handler = folder / "handler.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(handler)]
    subprocess.run(command, input=_HANDLER, text=True, check=True)
    copy = folder / "onnxruntime"
    shutil.copytree(Path(onnxruntime.__file__).parent, copy)
    for library in copy.glob("capi/onnxruntime_pybind11_state*.so"):
        _trap_cpuid(library)
    return os.environ | {"LD_PRELOAD": str(handler), "PYTHONPATH": str(folder)}


def _trap_cpuid(library: Path) -> None:
    sections = subprocess.run(["readelf", "-SW", library], capture_output=True, text=True, check=True).stdout
    text = re.search(r" \.text +PROGBITS +([0-9a-f]+) ([0-9a-f]+)", sections)
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    places = re.findall(r"^ *([0-9a-f]+):\s+cpuid", listing, re.MULTILINE)
    assert text is not None
    assert places, f"{library} never asks for the processor"
    address, offset = (int(each, 16) for each in text.groups())
    content = bytearray(library.read_bytes())
    for place in places:
        at = int(place, 16) - address + offset
        assert content[at : at + 2] == _CPUID
        content[at : at + 2] = _TRAP
    library.write_bytes(content)


def row(folder: Path) -> dict[str, object]:
    """Time both files in this process, which was started with the handler, and replay their proof."""
    files = [Classifier.load(folder / name, device="cpu") for name in ("model.onnx", "model.int8.onnx")]
    assert ctypes.c_int.in_dll(ctypes.CDLL(os.environ["LD_PRELOAD"]), "asked").value, "nothing was answered"
    spec = files[0].spec
    picture = np.zeros((1, *spec.preprocess.shape), np.uint8)
    times = medians_ms([lambda file=file: file.logits(picture) for file in files], seconds=5)  # type: ignore[misc]
    return {
        "model": f"{spec.architecture} on {folder.name}, {spec.preprocess.height}x{spec.preprocess.width}",
        "times as fast": round(times[0] / times[1], 2),
        "fp32 ms": round(times[0], 3),
        "int8 ms": round(times[1], 3),
        "self-tests": [str(replay(file)) for file in files],
    }


def main() -> None:
    """Measure each folder in a process that sees the other processor, and keep it."""
    if "LD_PRELOAD" in os.environ:
        print(json.dumps([row(Path(folder)) for folder in sys.argv[1:]]))
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = subprocess.run(
            [sys.executable, *sys.argv], env=prepared(Path(folder)), stdout=subprocess.PIPE, check=True
        ).stdout
    keep("without_vnni", json.loads(measured), ["onnxruntime", "numpy"])


if __name__ == "__main__":
    main()
