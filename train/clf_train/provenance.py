"""Where a model comes from, for its spec; and its images, found again from there."""

from __future__ import annotations

import hashlib
import platform
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision

import clf_runtime
from clf_runtime.errors import InvalidModelError
from clf_runtime.labeled.images import Columns
from clf_runtime.spec import Provenance
from clf_train.config import DataSource
from clf_train.data.dataset import Dataset
from clf_train.portable import portable_path
from clf_train.registry import find_dataset_row


def record_provenance(
    source: DataSource, dataset: Dataset | None, weights: bytes, epochs: float, command: str
) -> Provenance:
    """Record the origin of a model.

    Args:
        source: where its data set comes from.
        dataset: that data set; None if the model was imported without one.
        weights: the file of its state_dict.
        epochs: how long it was trained; 0 for an import.
        command: the command line.
    """
    row = find_dataset_row(source.data)
    is_downloaded = row is not None and row.source == "download"
    data_root = portable_path(source.data_root) if dataset and is_downloaded else None
    return Provenance(
        data=portable_path(source.data) if dataset else None,
        data_root=data_root,
        fingerprint=dataset.test.fingerprint() if dataset else None,
        test_split=source.test_split,
        seed=source.seed,
        epochs=epochs,
        state_dict_sha256=hashlib.sha256(weights).hexdigest(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        versions={
            "clf-edge": clf_runtime.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        columns=source.columns.to_dict() or None,
        splits={str(split): name for split, name in dataset.origins.items()} if dataset and dataset.origins else None,
    )


def restore_source(provenance: Provenance, data: str, data_root: str | None = None) -> DataSource:
    """Return the data source that finds the images of a training run again, in the same splits.

    Args:
        provenance: of the trained model.
        data: the name of its data set or its folder, which may have moved.
        data_root: the folder of named data sets, if it has moved.

    Raises:
        InvalidModelError: the provenance names columns that do not exist.
    """
    return DataSource(
        data=data,
        data_root=data_root or provenance.data_root or "data",
        test_split=provenance.test_split,
        seed=provenance.seed,
        columns=_choose_columns(provenance, data),
    )


def _choose_columns(provenance: Provenance, name: str) -> Columns:
    """Return the columns of the training; those of its table only if the data is a table again."""
    try:
        columns = Columns(**(provenance.columns or {}))
    except TypeError:  # the file was edited, or written by a later version
        names = ", ".join(provenance.columns or ())
        raise InvalidModelError(
            f"model.json: provenance.columns has {names}; expected only image, label, split and group_by; train again"
        ) from None
    is_same_kind = Path(name).suffix == Path(provenance.data or "").suffix
    return columns if is_same_kind else Columns(group_by=columns.group_by)
