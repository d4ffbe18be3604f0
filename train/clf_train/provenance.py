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
from clf_train.dataset import Dataset
from clf_train.order import Order
from clf_train.registry import dataset_row


def provenance(order: Order, dataset: Dataset | None, epochs: float, weights: bytes) -> Provenance:
    """Record the order, the held-out pictures of its data set, where there is one, and the state_dict's digest."""
    row = dataset_row(order.data)
    return Provenance(
        data=order.data if dataset else None,
        data_root=order.data_root if dataset and row is not None and row.source == "download" else None,
        fingerprint=dataset.test.fingerprint() if dataset else None,
        held_out=order.held_out,
        seed=order.seed,
        epochs=epochs,
        state_dict_sha256=hashlib.sha256(weights).hexdigest(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=order.command,
        versions={
            "clf-edge": clf_runtime.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    )
