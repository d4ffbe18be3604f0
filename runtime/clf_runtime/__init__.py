"""Run an exported image classifier: one file in, labels out. Needs numpy, Pillow and onnxruntime.

The public names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clf_runtime.classifier import Classifier as Classifier
    from clf_runtime.errors import ClfError as ClfError
    from clf_runtime.errors import DataRefused as DataRefused
    from clf_runtime.errors import MachineUnable as MachineUnable
    from clf_runtime.errors import ModelRefused as ModelRefused
    from clf_runtime.errors import PictureRefused as PictureRefused
    from clf_runtime.predictions import Failure as Failure
    from clf_runtime.predictions import Prediction as Prediction
    from clf_runtime.predictions import Score as Score
    from clf_runtime.spec import ModelSpec as ModelSpec

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "classifier",
    "ClfError": "errors",
    "DataRefused": "errors",
    "Failure": "predictions",
    "MachineUnable": "errors",
    "ModelRefused": "errors",
    "ModelSpec": "spec",
    "PictureRefused": "errors",
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
