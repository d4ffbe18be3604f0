"""The models and data sets that have a name. Imports nothing heavy, so that `--help` can list them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clf_runtime.spec import Color


@dataclass(frozen=True)
class ModelRow:
    """A model by name; its factory takes (channels, classes) and gives a torch module."""

    name: str
    what: str
    factory: str  # module:function


@dataclass(frozen=True)
class DatasetRow:
    """A data set by name, with the size and colour that its pictures have."""

    name: str
    what: str
    size: int  # pixels a side
    color: Color
    labels: tuple[str, ...]
    source: Literal["embedded", "download"]


MODELS = (
    ModelRow(
        "small-resnet",
        "for pictures of 8 to 64 pixels: 7 convolutions, 0.2 million parameters",
        "clf_train.models:small_resnet",
    ),
)

_TEN = tuple("0123456789")

DATASETS = (
    DatasetRow("digits", "1,797 handwritten digits of 8x8 pixels, carried by scikit-learn", 8, "L", _TEN, "embedded"),
    DatasetRow("mnist", "70,000 handwritten digits of 28x28 pixels", 28, "L", _TEN, "download"),
    DatasetRow(
        "fashion-mnist",
        "70,000 pieces of clothing of 28x28 pixels",
        28,
        "L",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "download",
    ),
    DatasetRow(
        "cifar10",
        "60,000 photographs of 32x32 pixels in 10 classes",
        32,
        "RGB",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "download",
    ),
)


def dataset_row(name: str) -> DatasetRow | None:
    """Give the data set of this name, or None: then the name is a folder's."""
    return next((row for row in DATASETS if row.name == name), None)


def model_row(name: str) -> ModelRow | None:
    """Give the model of this name, or None."""
    return next((row for row in MODELS if row.name == name), None)
