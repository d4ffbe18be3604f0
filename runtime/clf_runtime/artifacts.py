"""The names inside an artifacts folder: one folder is one model, from training to device."""

from __future__ import annotations

STATE_DICT = "model.pt"
SPEC = "model.json"
HISTORY = "history.csv"
REPORT = "report.html"
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

# What an unfinished training leaves, to go on from.
UNFINISHED = (CHECKPOINT, PREVIOUS_CHECKPOINT)

# What only a training writes, and an import in its place does not.
OF_TRAINING = (HISTORY, REPORT, UNREADABLE)

# Made from STATE_DICT: gone when that one is replaced, so that nothing answers for a model that is no more.
DERIVED = (ONNX, ONNX_FP16, ONNX_INT8, TORCHSCRIPT, PT2, EXPORT)
