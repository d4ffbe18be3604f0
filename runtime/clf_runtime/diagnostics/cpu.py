"""What the processor is and can do, as far as the system tells."""

from __future__ import annotations

import platform
from pathlib import Path

# What onnxruntime's kernels choose by, oldest first: the word in /proc/cpuinfo → how people call it.
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
    """Name the processor."""
    words = _cpuinfo(proc)
    for key in ("model name", "Hardware", "Model"):
        if words.get(key):
            return words[key]
    return platform.processor() or platform.machine() or "unknown"


def instruction_sets(proc: Path = Path("/proc")) -> list[str] | None:
    """Name the instruction sets that matter here, or None where the system does not tell."""
    words = _cpuinfo(proc)
    flags = words.get("flags") or words.get("Features")
    if flags is None:
        return None
    found = set(flags.split())
    return list(dict.fromkeys(called for word, called in _INSTRUCTION_SETS.items() if word in found))


def _cpuinfo(proc: Path) -> dict[str, str]:
    """Give what is said of the first processor, by key."""
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.partition(":") for line in lines if ":" in line]
    words: dict[str, str] = {}
    for key, _, value in pairs:
        words.setdefault(key.strip(), value.strip())
    return words
