"""Where a model comes from, for its spec."""

from __future__ import annotations

import hashlib
import platform
from datetime import datetime, timezone

import numpy as np
import PIL
import torch
import torchvision

import clf_runtime
from clf_runtime.spec import Provenance
from clf_train.config import TrainConfig
from clf_train.data.dataset import Dataset
from clf_train.registry import dataset_row


def provenance(config: TrainConfig, dataset: Dataset | None, epochs: float, weights: bytes) -> Provenance:
    """Record the order, the held-out images of its data set, where there is one, and the state_dict's digest."""
    row = dataset_row(config.data)
    return Provenance(
        data=config.data if dataset else None,
        data_root=config.data_root if dataset and row is not None and row.source == "download" else None,
        fingerprint=dataset.test.fingerprint() if dataset else None,
        test_split=config.test_split,
        seed=config.seed,
        epochs=epochs,
        state_dict_sha256=hashlib.sha256(weights).hexdigest(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=config.command,
        versions={
            "clf-edge": clf_runtime.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    )
