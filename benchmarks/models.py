"""Models to measure speed with: networks by name with fresh weights, exported as clf-export does it, unproven.

usage: models.py NAME FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import onnx_from_program, with_metadata
from clf_export.exporters.trace import program_from_model
from clf_runtime.onnx_file import SPEC_KEY
from clf_runtime.spec import ModelSpec
from clf_train.config import InputOptions
from clf_train.models.factory import build_model
from clf_train.plan import resolve_input


def exported(architecture: str, folder: Path) -> Path:
    """Write `folder`/NAME.onnx, unless it is there: torchvision's at their size, 1000 classes; ours for MNIST, 10."""
    path = folder / f"{architecture}.onnx"
    if path.exists():
        return path
    ours = "-" in architecture
    torch.manual_seed(0)
    options = InputOptions(size=(28, 28), color="L") if ours else InputOptions()
    preprocess, normalize = resolve_input(architecture, options)
    labels = tuple(f"class {index}" for index in range(10 if ours else 1000))
    spec = ModelSpec(architecture, labels, preprocess, normalize, 1.0, None, None)
    module = ExportModule(build_model(architecture, preprocess.shape, len(labels)).eval(), spec).eval()
    graph = onnx_from_program(program_from_model(module, spec))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(with_metadata(graph, {SPEC_KEY: spec.to_json()}))
    return path


if __name__ == "__main__":
    print(exported(sys.argv[1], Path(sys.argv[2])))
