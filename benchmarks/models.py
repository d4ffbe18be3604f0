"""Models for speed measurements: named networks with random weights, exported without a parity check.

usage: models.py NAME FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import OnnxExporter, onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_runtime.onnx_file import SPEC_KEY
from clf_runtime.spec import ModelSpec
from clf_train.config import InputOptions
from clf_train.models.factory import build_model
from clf_train.plan import resolve_input


def export(architecture: str, folder: Path) -> Path:
    """Write `folder`/NAME.onnx, unless it exists, and return its path.

    A network of torchvision has its own input size and 1000 classes; one of clf-edge is for MNIST, with 10 classes.
    """
    path = folder / f"{architecture}.onnx"
    if path.exists():
        return path
    is_own = "-" in architecture
    torch.manual_seed(0)
    options = InputOptions(size=(28, 28), color="L") if is_own else InputOptions()
    preprocess, normalize = resolve_input(architecture, options)
    labels = tuple(f"class {index}" for index in range(10 if is_own else 1000))
    spec = ModelSpec(architecture, labels, preprocess, normalize, 1.0, None, None)
    module = ExportModule(build_model(architecture, preprocess.shape, len(labels)).eval(), spec).eval()
    graph = onnx_from_program(program_from_model(module, spec))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(OnnxExporter(graph).build({SPEC_KEY: spec.to_json()}))
    return path


if __name__ == "__main__":
    print(export(sys.argv[1], Path(sys.argv[2])))
