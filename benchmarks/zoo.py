"""Every classifier of torchvision.models, exported and compared with eager PyTorch.

usage: zoo.py [NAME]...

The weights and the 8 images are random: the question is whether the exported graph is the network. The difference of
the logits is given as a share of their scale, the largest |logit|, and has to stay within 1e-4. A network that ONNX
cannot hold is exported as pt2, and its row says why. With names, the rows of the other networks stay in the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from measure import RESULTS, save_result

from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import onnx_from_program
from clf_export.exporters.pt2 import Pt2Exporter
from clf_export.exporters.trace import program_from_model
from clf_export.quantize.graph import Graph
from clf_runtime.errors import ClfError
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec
from clf_train.config import InputOptions
from clf_train.models.factory import build_model
from clf_train.plan import resolve_input
from clf_train.registry import TORCHVISION

CLASSES = 1000
IMAGES = 8
TOLERANCE = 1e-4
MIN_SPREAD = 0.01  # of the logits' scale, between images


def build_module(name: str) -> tuple[ExportModule, ModelSpec]:
    """Build a network with random weights as clf-export would export it, and its spec."""
    torch.manual_seed(0)
    preprocess, normalize = resolve_input(name, InputOptions())
    spec = ModelSpec(
        architecture=name,
        labels=tuple(map(str, range(CLASSES))),
        preprocess=preprocess,
        normalize=normalize,
        temperature=1.0,
        metrics=None,
        provenance=None,
    )
    network = build_model(name, preprocess.shape, CLASSES).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.02)  # the head of a transformer starts with zeros
    return ExportModule(network, spec).eval(), spec


def measure(name: str) -> dict[str, object]:
    """Export one network and compare it with eager PyTorch."""
    module, spec = build_module(name)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, *spec.preprocess.shape), dtype=np.uint8)
    expected = _compute_distinct_logits(module, pixels)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    result: dict[str, object] = {
        "model": name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "input": f"{spec.preprocess.height}x{spec.preprocess.width}",
        "parameters": f"{parameters / 1e6:.1f} M",
    }
    started = time.perf_counter()
    program = program_from_model(module, spec)
    run = _run_onnx
    try:
        content = onnx_from_program(program)
    except ClfError as error:
        result["reason"] = f"{error}; this row is of pt2"
        content, run = Pt2Exporter(program).build({}), _run_pt2
    seconds = time.perf_counter() - started
    del module, program
    logits = run(content, pixels)
    scale = float(np.abs(expected).max())
    difference = float(np.abs(logits - expected).max()) / scale
    return result | {
        "seconds": round(seconds, 1),
        "size": f"{len(content) / 1e6:.1f} MB",
        "logits' scale": float(f"{scale:.2g}"),
        "difference / scale": float(f"{difference:.1e}"),
        "reached": difference <= TOLERANCE,
    }


def _compute_distinct_logits(module: ExportModule, pixels: UInt8Array) -> Float32Array:
    """Return PyTorch's logits, which must differ between images, or they would only show the last layer's bias."""
    first = _compute_logits(module, pixels)
    if _is_distinct(first):
        return first
    # Untrained batch normalization lets the signal fade, so it is given the statistics of these images.
    norms = [layer.train() for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    _compute_logits(module, pixels)
    for norm in norms:
        norm.eval()
    normalized = _compute_logits(module, pixels)
    assert _is_distinct(normalized), "the logits of all images are the same"
    return normalized


def _compute_logits(module: ExportModule, pixels: UInt8Array) -> Float32Array:
    with torch.inference_mode():
        logits: Float32Array = module(torch.from_numpy(pixels))[0].numpy()
    return logits


def _is_distinct(logits: Float32Array) -> bool:
    return float(np.ptp(logits, axis=0).max()) > MIN_SPREAD * float(np.abs(logits).max())


def _run_onnx(content: bytes, pixels: UInt8Array) -> Float32Array:
    return Graph(content).run(pixels)[0]


def _run_pt2(content: bytes, pixels: UInt8Array) -> Float32Array:
    with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        file.write(content)
        file.flush()
        return Pt2Exporter.open(Path(file.name)).run(pixels)[0]


def main() -> None:
    """Export, compare, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *TORCHVISION])
    names = parser.parse_args().names or sorted(TORCHVISION)
    path = RESULTS / "zoo.json"
    before = json.loads(path.read_text())["result"] if path.exists() else []
    rows = {row["model"]: row for row in before}
    for name in names:
        rows[name] = measure(name)
        print(json.dumps(rows[name], ensure_ascii=False), file=sys.stderr, flush=True)
        gc.collect()
    ordered = [rows[name] for name in sorted(rows)]
    save_result("zoo", ordered, ["torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy"])


if __name__ == "__main__":
    main()
