"""The named data sets: scikit-learn's digits, and those that torchvision loads or downloads."""

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


def load(row: DatasetRow, data_root: Path, test_split: float, seed: int) -> Dataset:
    """Load a named data set.

    Args:
        row: which one.
        data_root: where it is, or is downloaded to.
        test_split: the share of the test split, if the data set has none of its own.
        seed: of the splits.

    Raises:
        MachineError: it could not be downloaded.
    """
    if row.name == "digits":
        return _load_digits(row, test_split, seed)
    splits = {}
    for split, is_train in (("train", True), ("test", False)):
        pixels, targets = _load_torchvision(row, data_root, is_train)
        names = [f"{row.name}/{split}/{index:05d}.png" for index in range(len(targets))]
        splits[split] = ArrayImageSet(pixels, names, targets)
    return split_validation(row.labels, splits["train"], splits["test"], "test", seed)


def _load_digits(row: DatasetRow, test_split: float, seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Each cell counts ink from 0 to 16 (scikit-learn, "Optical recognition of handwritten digits").
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    names = [f"digits/{index:04d}.png" for index in range(len(pixels))]
    images = ArrayImageSet(pixels, names, bunch.target.astype(np.int64))
    rest, test = split_off(images, test_split, seed, "test", smallest=2)
    return split_validation(row.labels, rest, test, f"test {test_split:.0%}", seed)


def _load_torchvision(row: DatasetRow, data_root: Path, is_train: bool) -> tuple[UInt8Array, Int64Array]:
    from torchvision import datasets

    loader = getattr(datasets, _TORCHVISION_CLASS[row.name])
    try:
        content = loader(data_root, train=is_train, download=False)
    except RuntimeError:  # torchvision raises it for a missing data set
        content = _download(loader, row, data_root, is_train)
    pixels = np.asarray(content.data, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:3], -1), np.asarray(content.targets, dtype=np.int64)


def _download(loader: Callable[..., Any], row: DatasetRow, data_root: Path, is_train: bool) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints while it downloads
            return loader(data_root, train=is_train, download=True)
    except (RuntimeError, OSError) as error:
        raise MachineError(
            f"{data_root}: {row.name} is missing and could not be downloaded ({' '.join(str(error).split())}); "
            "download it on a machine with a network, and name its folder with --data-root"
        ) from None
