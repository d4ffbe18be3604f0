"""The user's choices for a training run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clf_runtime.errors import UsageError
from clf_runtime.labeled.images import Columns
from clf_runtime.spec import Color, ResizeMode
from clf_train.data import builtin, folder
from clf_train.data.dataset import Dataset
from clf_train.registry import find_dataset_row

AUTO = "auto"
CacheOption = Literal["auto", "memory", "disk", "none"]


@dataclass(frozen=True)
class DataSource:
    """Where labeled images are and how they are split."""

    data: str  # the name of a data set, or a folder, an archive or a manifest
    data_root: str = "data"  # the folder of named data sets
    test_split: float = 0.2  # the share of the test split, if the data has none of its own
    seed: int = 0  # of the splits, and of the training
    columns: Columns = field(default_factory=Columns)  # of a manifest, and how images are grouped


@dataclass(frozen=True)
class InputOptions:
    """The user's choices for the network's input; None leaves a choice to the model and the images."""

    size: tuple[int, int] | None = None  # (height, width) in pixels
    color: Color | None = None
    resize: ResizeMode = "crop"
    mean: tuple[float, ...] | None = None  # one value or one per channel, of pixels in 0..1
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TrainConfig:
    """The user's choices for a training run; None leaves a choice to the data and the model."""

    source: DataSource = field(default_factory=lambda: DataSource("digits"))
    model: str = AUTO
    weights: str | None = None  # clf_train.registry.DEFAULT_WEIGHTS, NO_WEIGHTS, or a file
    input: InputOptions = field(default_factory=InputOptions)
    epochs: float | None = None
    budget_s: float | None = None  # seconds from `started` to the finished model
    started: float = field(default_factory=time.monotonic)
    batch_size: int | None = None
    learning_rate: float | None = None
    device: str = "auto"  # or cpu, cuda
    cache: CacheOption = "auto"
    skip_unreadable: bool = False
    overwrite: bool = False
    resume: bool = False
    checkpoint_every_s: float = 180.0
    tensorboard: bool = False
    command: str = ""  # for the provenance


def load_dataset(source: DataSource) -> Dataset:
    """Find the images of a data source and split them.

    Raises:
        DataError: the folder, the archive or the manifest cannot be used.
        UsageError: an option does not apply to it.
        MachineError: the data set could not be downloaded.
    """
    row = find_dataset_row(source.data)
    if row is not None:
        if source.columns != Columns():
            raise UsageError(f"{row.name}: is a named data set, which has no columns and no groups; leave them out")
        return builtin.load(row, Path(source.data_root), source.test_split, source.seed)
    return folder.load(Path(source.data), source.test_split, source.seed, source.columns)
