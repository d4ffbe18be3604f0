"""The file names in an artifacts folder, which contains one model from training to deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STATE_DICT = "model.pt"
SPEC = "model.json"
HISTORY = "history.csv"
REPORT = "report.html"
IMAGES = "images.html"
LABEL_ISSUES = "label_issues.csv"
SAMPLES = "samples"
ONNX = "model.onnx"
ONNX_FP16 = "model.fp16.onnx"
ONNX_INT8 = "model.int8.onnx"
TORCHSCRIPT = "model.torchscript.pt"
PT2 = "model.pt2"
EXPORT = "export.json"
CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint.previous.pt"
UNREADABLE = "unreadable.csv"
PREVIEW = "preview.html"
TENSORBOARD = "tensorboard"

# What interrupted training leaves, for --resume.
UNFINISHED = (CHECKPOINT, PREVIOUS_CHECKPOINT)

# Written by training only, not by an import.
OF_TRAINING = (HISTORY, REPORT, IMAGES, LABEL_ISSUES, UNREADABLE)

# Of ONNX files, beside each.
SIGNATURE_SUFFIX = ".sig"
SIGNATURES = tuple(name + SIGNATURE_SUFFIX for name in (ONNX, ONNX_FP16, ONNX_INT8))

# Derived from STATE_DICT, and removed when it is replaced: no file describes a model that no longer exists.
DERIVED = (ONNX, ONNX_FP16, ONNX_INT8, TORCHSCRIPT, PT2, EXPORT, *SIGNATURES)


def find_onnx_files(folder: Path) -> tuple[Path, ...]:
    """Return the ONNX files of a folder; without any, the path of the first, whose error says what to do."""
    found = tuple(folder / name for name in (ONNX, ONNX_FP16, ONNX_INT8) if (folder / name).exists())
    return found or (folder / ONNX,)
