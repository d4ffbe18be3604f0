"""Every classifier of torchvision.models, exported: does the file give what PyTorch gives?

usage: zoo.py [NAME]...

The weights are random, and so are the 8 images: what is asked is whether the graph is the network. A difference is
told as a share of the logits' scale, their largest |value|, and has to stay within 1e-4. What ONNX cannot hold is
exported as pt2, with the reason beside it. Names given leave the other rows of the table as they are.
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
from clf_export.exporters.pt2 import Pt2Model, pt2_bytes
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
WITHIN = 1e-4
SPREAD = 0.01  # of the logits' scale, from image to image


def deployable(name: str) -> tuple[ExportModule, ModelSpec]:
    """Build one network with random weights, and what it would be exported with."""
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
            torch.nn.init.normal_(layer.weight, std=0.02)  # a transformer's head begins as zeros: nothing to compare
    return ExportModule(network, spec).eval(), spec


def row(name: str) -> dict[str, object]:
    """Export one network and compare it with eager PyTorch."""
    module, spec = deployable(name)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, *spec.preprocess.shape), dtype=np.uint8)
    wanted = _telling_logits(module, pixels)
    parameters = sum(each.numel() for each in module.parameters())
    result: dict[str, object] = {
        "model": name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "input": f"{spec.preprocess.height}x{spec.preprocess.width}",
        "parameters": f"{parameters / 1e6:.1f} M",
    }
    started = time.perf_counter()
    program = program_from_model(module, spec)
    logits = _logits_by_onnx
    try:
        content = onnx_from_program(program)
    except ClfError as refusal:
        result["reason"] = f"{refusal}; so this row is of pt2"
        content, logits = pt2_bytes(program, {}), _logits_by_pt2
    seconds = time.perf_counter() - started
    del module, program
    given = logits(content, pixels)
    scale = float(np.abs(wanted).max())
    difference = float(np.abs(given - wanted).max()) / scale
    return result | {
        "seconds": round(seconds, 1),
        "size": f"{len(content) / 1e6:.1f} MB",
        "logits' scale": float(f"{scale:.2g}"),
        "difference / scale": float(f"{difference:.1e}"),
        "reached": difference <= WITHIN,
    }


def _telling_logits(module: ExportModule, pixels: UInt8Array) -> Float32Array:
    """Give PyTorch's answers, which have to differ from image to image: else they are the last layer's bias."""

    def logits() -> Float32Array:
        with torch.inference_mode():
            given: Float32Array = module(torch.from_numpy(pixels))[0].numpy()
        return given

    first = logits()
    if float(np.ptp(first, axis=0).max()) > SPREAD * float(np.abs(first).max()):
        return first
    # Batch normalisation that was never trained lets the signal fade; so it sees these images once.
    norms = [each.train() for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    logits()
    for norm in norms:
        norm.eval()
    settled = logits()
    assert float(np.ptp(settled, axis=0).max()) > SPREAD * float(np.abs(settled).max()), "nothing to compare"
    return settled


def _logits_by_onnx(content: bytes, pixels: UInt8Array) -> Float32Array:
    return Graph(content).run(pixels)[0]


def _logits_by_pt2(content: bytes, pixels: UInt8Array) -> Float32Array:
    with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        file.write(content)
        file.flush()
        return Pt2Model(Path(file.name), ()).run(pixels)[0]


def main() -> None:
    """Export, compare, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *TORCHVISION])
    names = parser.parse_args().names or sorted(TORCHVISION)
    path = RESULTS / "zoo.json"
    before = json.loads(path.read_text())["result"] if path.exists() else []
    known = {each["model"]: each for each in before}
    for name in names:
        known[name] = row(name)
        print(json.dumps(known[name], ensure_ascii=False), file=sys.stderr, flush=True)
        gc.collect()
    ordered = [known[name] for name in sorted(known)]
    save_result("zoo", ordered, ["torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy"])


if __name__ == "__main__":
    main()
