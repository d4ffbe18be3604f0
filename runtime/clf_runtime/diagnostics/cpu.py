"""The name of the processor and its instruction sets, as far as the system reports them."""

from __future__ import annotations

import platform
from pathlib import Path

# What onnxruntime selects its kernels by, oldest first: flag in /proc/cpuinfo → common name.
_INSTRUCTION_SETS = {
    "sse4_1": "SSE4.1",
    "avx": "AVX",
    "fma": "FMA",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "neon": "NEON",
    "asimd": "NEON",
    "fphp": "FP16",
    "asimdhp": "FP16 vectors",
    "asimddp": "dot product",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}


def name(proc: Path = Path("/proc")) -> str:
    """Return the name of the processor."""
    values = _read_cpuinfo(proc)
    for key in ("model name", "Hardware", "Model"):
        if values.get(key):
            return values[key]
    return platform.processor() or platform.machine() or "unknown"


def instruction_sets(proc: Path = Path("/proc")) -> list[str] | None:
    """Return the instruction sets that matter to onnxruntime, or None if the system does not report them."""
    values = _read_cpuinfo(proc)
    flags = values.get("flags") or values.get("Features")
    if flags is None:
        return None
    supported = set(flags.split())
    return list(dict.fromkeys(common_name for flag, common_name in _INSTRUCTION_SETS.items() if flag in supported))


def _read_cpuinfo(proc: Path) -> dict[str, str]:
    """Return the values of the first processor by key."""
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.partition(":") for line in lines if ":" in line]
    values: dict[str, str] = {}
    for key, _, value in pairs:
        values.setdefault(key.strip(), value.strip())
    return values
