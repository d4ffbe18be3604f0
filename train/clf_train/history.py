"""What training went through: a row per epoch, as history.csv and the report show it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images. Losses are in nats, accuracies 0..1."""

    epoch: int  # from 1
    learning_rate: float  # at the end of the epoch
    train_loss: float  # mean over the epoch, augmentation and label smoothing included
    train_accuracy: float
    validation_loss: float | None  # None where there are too few images for a validation split
    validation_accuracy: float | None
    seconds: float  # of training, validation not counted


def csv_from_history(history: Sequence[Epoch]) -> str:
    """Give history.csv: a header, then a row per epoch."""
    text = io.StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(epoch) for epoch in history)
    return text.getvalue()


def duration(seconds: float) -> str:
    """Give a time as a person would say it: 4.2 s, 3 min 12 s, 1 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f}\u00a0s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60:02}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60:02}\u00a0min"
