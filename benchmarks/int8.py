"""INT8 beside FP32 for trained models: size, latency, and accuracy on the test split.

usage: int8.py [--only-avx2] ARTIFACTS...

Each folder is the result of a finished clf-train; clf-export replaces its model.onnx and model.int8.onnx. Rows of other
folders and of other machines stay in the table. Latencies are medians, with both files timed in turn. With --only-avx2,
nothing newer is used on a processor that can hide it (only_avx2.c; needs cc).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from measure import RESULTS, machine, save_result

from clf_export.latency import measure_latencies_ms
from clf_runtime import Classifier

SECONDS = 10.0  # of timing, per file
ONLY_AVX2 = "CLF_BENCHMARK_ONLY_AVX2"  # set in the process that must not use newer instructions


def measure(folder: Path) -> dict[str, object]:
    """Export both files, and compare their records in export.json and their latencies."""
    program = Path(sys.executable).parent / "clf-export"
    command = [str(program), "-a", str(folder), "-p", "fp32", "-p", "int8", "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record = json.loads((folder / "export.json").read_text())
    fp32, int8 = record["model.onnx"], record["model.int8.onnx"]
    classifiers = [Classifier.load(folder / name, device="cpu") for name in ("model.onnx", "model.int8.onnx")]
    spec = classifiers[0].spec
    image = np.zeros((1, *spec.preprocess.shape), np.uint8)
    fp32_ms, int8_ms = measure_latencies_ms([partial(classifier.run, image) for classifier in classifiers], SECONDS)
    return {
        "model": f"{spec.architecture} on {folder.name}, {spec.preprocess.height}x{spec.preprocess.width}",
        "machine": machine() + (", only AVX2 used" if ONLY_AVX2 in os.environ else ""),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "quantization": int8["quantization"],
        "size ratio": round(fp32["size_bytes"] / int8["size_bytes"], 2),
        "speedup": round(fp32_ms / int8_ms, 2),
        "fp32 ms": round(fp32_ms, 3),
        "int8 ms": round(int8_ms, 3),
        "accuracy": [fp32["accuracy"], int8["accuracy"]],
        "accuracy drop (pp)": round(100 * (fp32["accuracy"] - int8["accuracy"]), 2),
        "images": int8["accuracy_images"],
    }


def run_with_only_avx2(folders: list[str]) -> None:
    """Run this script again in a process that sees no newer instructions."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "only_avx2.so"
        source = Path(__file__).with_name("only_avx2.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        env = os.environ | {"LD_PRELOAD": str(library), ONLY_AVX2: "1"}
        subprocess.run([sys.executable, __file__, *folders], check=True, env=env)


def main() -> None:
    """Measure and save the results."""
    if sys.argv[1:2] == ["--only-avx2"]:
        run_with_only_avx2(sys.argv[2:])
        return
    path = RESULTS / "int8.json"
    before = json.loads(path.read_text())["result"] if path.exists() else []
    rows = {(row["model"], row["machine"]): row for row in before}
    for folder in sys.argv[1:]:
        row = measure(Path(folder))
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows[row["model"], row["machine"]] = row
    save_result("int8", [rows[key] for key in sorted(rows, key=str)], ["torch", "onnx", "onnxruntime", "numpy"])


if __name__ == "__main__":
    main()
