"""The data sets that have a name: scikit-learn's digits, and those that torchvision loads or downloads."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clf_runtime.errors import MachineError
from clf_runtime.preprocess import UInt8Array
from clf_train.data.dataset import ArrayImageSet, Dataset, Int64Array, split_off, split_validation
from clf_train.registry import DatasetRow

_TORCHVISION_CLASS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}


def load(row: DatasetRow, data_root: Path, test_share: float, seed: int) -> Dataset:
    """Load a data set by its row; what is to be downloaded goes to `data_root`. Raises MachineError."""
    if row.name == "digits":
        return _digits(row, test_share, seed)
    parts = {}
    for part, train in (("train", True), ("test", False)):
        pixels, targets = _torchvision(row, data_root, train)
        names = [f"{row.name}/{part}/{index:05d}.png" for index in range(len(targets))]
        parts[part] = ArrayImageSet(pixels, names, targets)
    return split_validation(row.labels, parts["train"], parts["test"], "test", seed)


def _digits(row: DatasetRow, test_share: float, seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Ink is counted from 0 to 16 a cell (scikit-learn, "Optical recognition of handwritten digits").
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    names = [f"digits/{index:04d}.png" for index in range(len(pixels))]
    images = ArrayImageSet(pixels, names, bunch.target.astype(np.int64))
    rest, test = split_off(images, test_share, seed, "test", smallest=2)
    return split_validation(row.labels, rest, test, f"held-out {test_share:.0%}", seed)


def _torchvision(row: DatasetRow, data_root: Path, train: bool) -> tuple[UInt8Array, Int64Array]:
    from torchvision import datasets

    loader = getattr(datasets, _TORCHVISION_CLASS[row.name])
    try:
        loaded = loader(data_root, train=train, download=False)
    except RuntimeError:  # torchvision's way of saying that it is not there
        loaded = _downloaded(loader, row, data_root, train)
    pixels = np.asarray(loaded.data, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:3], -1), np.asarray(loaded.targets, dtype=np.int64)


def _downloaded(loader: Callable[..., Any], row: DatasetRow, data_root: Path, train: bool) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision talks while it downloads
            return loader(data_root, train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise MachineError(
            f"{data_root}: {row.name} is not there, and could not be downloaded ({' '.join(str(error).split())}); "
            "download it where there is a network, and name its folder with --data-root"
        ) from None
