"""The history of a training run: one row per epoch, for history.csv and the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Epoch:
    """Metrics of one pass over the training images. Losses are in nats, accuracies 0..1."""

    epoch: int  # from 1
    learning_rate: float  # at the end of the epoch
    train_loss: float  # mean over the epoch, with augmentation and label smoothing
    train_accuracy: float
    validation_loss: float | None  # None without a validation split: there are too few images
    validation_accuracy: float | None
    seconds: float  # of training, without validation


def csv_from_history(history: Sequence[Epoch]) -> str:
    """Return the text of history.csv: a header and one row per epoch."""
    text = io.StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(epoch) for epoch in history)
    return text.getvalue()
