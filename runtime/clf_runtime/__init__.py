"""Run an exported image classifier: one file in, labels out. Needs numpy, Pillow and onnxruntime.

The public names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clf_runtime.classifier import Classifier as Classifier
    from clf_runtime.errors import ClfError as ClfError
    from clf_runtime.errors import DataError as DataError
    from clf_runtime.errors import ImageError as ImageError
    from clf_runtime.errors import InvalidModelError as InvalidModelError
    from clf_runtime.errors import MachineError as MachineError
    from clf_runtime.predictions import Failure as Failure
    from clf_runtime.predictions import Prediction as Prediction
    from clf_runtime.predictions import Score as Score
    from clf_runtime.spec import ModelSpec as ModelSpec

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "classifier",
    "ClfError": "errors",
    "DataError": "errors",
    "Failure": "predictions",
    "MachineError": "errors",
    "InvalidModelError": "errors",
    "ModelSpec": "spec",
    "ImageError": "errors",
    "Prediction": "predictions",
    "Score": "predictions",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
