"""INT8 beside FP32, of models that are trained already: size, latency, accuracy on every held-out image.

usage: int8.py ARTIFACTS...

Each folder is one that clf-train finished; clf-export replaces its model.onnx and model.int8.onnx. Rows of folders that
are not named, and of other machines, stay as they were. Latencies are medians, both files in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from measure import RESULTS, machine, save_result

from clf_export.latency import medians_ms
from clf_runtime import Classifier

SECONDS = 10.0  # of timing, for each file


def row(folder: Path) -> dict[str, object]:
    """Export both, and compare what export.json says of them."""
    program = Path(sys.executable).parent / "clf-export"
    command = [str(program), "-a", str(folder), "-p", "fp32", "-p", "int8", "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record = json.loads((folder / "export.json").read_text())
    fp32, int8 = record["model.onnx"], record["model.int8.onnx"]
    files = [Classifier.load(folder / name, device="cpu") for name in ("model.onnx", "model.int8.onnx")]
    spec = files[0].spec
    image = np.zeros((1, *spec.preprocess.shape), np.uint8)
    times = medians_ms([lambda file=file: file.run(image) for file in files], SECONDS)  # type: ignore[misc]
    return {
        "model": f"{spec.architecture} on {folder.name}, {spec.preprocess.height}x{spec.preprocess.width}",
        "machine": machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "way": int8["made"],
        "times smaller": round(fp32["size_bytes"] / int8["size_bytes"], 2),
        "times as fast": round(times[0] / times[1], 2),
        "fp32 ms": round(times[0], 3),
        "int8 ms": round(times[1], 3),
        "accuracy": [fp32["accuracy"], int8["accuracy"]],
        "points down": round(100 * (fp32["accuracy"] - int8["accuracy"]), 2),
        "images": int8["accuracy_images"],
    }


def main() -> None:
    """Measure and keep."""
    path = RESULTS / "int8.json"
    before = json.loads(path.read_text())["result"] if path.exists() else []
    known = {(each["model"], each["machine"]): each for each in before}
    for folder in sys.argv[1:]:
        each = row(Path(folder))
        print(json.dumps(each), file=sys.stderr, flush=True)
        known[each["model"], each["machine"]] = each
    save_result("int8", [known[name] for name in sorted(known, key=str)], ["torch", "onnx", "onnxruntime", "numpy"])


if __name__ == "__main__":
    main()
