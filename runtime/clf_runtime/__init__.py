"""Run an exported image classifier: images in, labels out. Needs numpy, Pillow and onnxruntime.

The public names are resolved on first use, so importing the package costs nothing. It switches the telemetry of
onnxruntime off, unless the environment variable `ORT_DISABLE_TELEMETRY` is set already.

Examples:
    >>> from clf_runtime import Classifier  # doctest: +SKIP
    >>> Classifier.load("model.onnx").predict("img.jpg").label  # doctest: +SKIP
    '7'
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # type checkers take it for that of typing, whose import takes 5 ms

if TYPE_CHECKING:
    from typing import Any

    from clf_runtime.classifier import Classifier as Classifier
    from clf_runtime.errors import ClfError as ClfError
    from clf_runtime.errors import DataError as DataError
    from clf_runtime.errors import ImageError as ImageError
    from clf_runtime.errors import InvalidModelError as InvalidModelError
    from clf_runtime.errors import MachineError as MachineError
    from clf_runtime.errors import UsageError as UsageError
    from clf_runtime.predictions import Failure as Failure
    from clf_runtime.predictions import Prediction as Prediction
    from clf_runtime.predictions import Score as Score
    from clf_runtime.spec import ModelSpec as ModelSpec

__version__ = "0.2.0"

# onnxruntime 1.31 and later write to ~/.cache/Microsoft and look up a host of Microsoft, unless this is in the
# environment before they are imported. Set here: this precedes every import of onnxruntime, and processes inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Public name → the module that defines it.
_MODULES = {
    "Classifier": "classifier",
    "ClfError": "errors",
    "DataError": "errors",
    "Failure": "predictions",
    "ImageError": "errors",
    "InvalidModelError": "errors",
    "MachineError": "errors",
    "ModelSpec": "spec",
    "Prediction": "predictions",
    "Score": "predictions",
    "UsageError": "errors",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
