"""Models to measure speed with: networks by name with fresh weights, exported as clf-export does it, unproven."""

from __future__ import annotations

from pathlib import Path

import torch

from clf_export.deployable import Deployable
from clf_export.onnx_from_model import onnx_from_model, with_metadata
from clf_runtime.onnx_file import SPEC_KEY
from clf_runtime.spec import ModelSpec
from clf_train.models import build
from clf_train.order import Order, input_of


def exported(architecture: str, folder: Path, *, size: int | None = None, color: str | None = None) -> Path:
    """Write `folder`/NAME.onnx, once; for torchvision's networks with its 1000 classes, else with 10."""
    path = folder / f"{architecture}.onnx"
    if path.exists():
        return path
    torch.manual_seed(0)
    side = None if size is None else (size, size)
    how, normalize = input_of(Order(model=architecture, size=side, color=color), architecture)  # type: ignore[arg-type]
    labels = tuple(f"class {index}" for index in range(1000 if size is None else 10))
    spec = ModelSpec(architecture, labels, how, normalize, 1.0, None, None)
    graph = onnx_from_model(Deployable(build(architecture, how.shape, len(labels)).eval(), spec).eval(), spec)
    path.write_bytes(with_metadata(graph, {SPEC_KEY: spec.to_json()}))
    return path


if __name__ == "__main__":
    import sys

    for name in ("mobilenet_v3_small", "resnet18"):
        print(exported(name, Path(sys.argv[1])))
    for name in ("tiny-convnet", "small-resnet"):
        print(exported(name, Path(sys.argv[1]), size=28, color="L"))
