"""What a caller of the training learns while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from clf_train.history import Epoch


class TrainCallbacks(Protocol):
    """Receives the progress of a training run; `clf_train.progress.Progress` prints it."""

    def on_decode_start(self, images: int) -> None:
        """This process starts to decode so many image files; 0 for a data set that is already decoded."""

    def on_decode(self, images: int) -> None:
        """So many more image files are decoded."""

    def on_train_start(self, summary: str, epochs: float, images: int, images_done: int) -> None:
        """Training starts, or resumes after `images_done` of `images`: each image counts once per epoch."""

    def on_step(self, images_done: int) -> None:
        """A step ended; `images_done` counts from the first step of the training."""

    def on_epoch(self, row: Epoch) -> None:
        """An epoch ended and is validated."""

    def on_warning(self, message: str) -> None:
        """Something is wrong that does not stop the training."""
