"""What a caller of the training learns while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from clf_train.data.findings import DataFindings
    from clf_train.history import Epoch


class TrainCallbacks(Protocol):
    """Receives the progress of a training run; `clf_train.progress.Progress` prints it."""

    def on_decode_start(self, images: int) -> None:
        """Handle the start of decoding, with the number of image files; 0 for a data set that is already decoded."""

    def on_decode(self, images: int) -> None:
        """Handle that this number of further image files is decoded."""

    def on_data(self, findings: DataFindings) -> None:
        """Handle what was found in the data, before its warnings; not for a named data set."""

    def on_features_start(self, images: int) -> None:
        """Handle that a pretrained network starts to compute the features of this number of images."""

    def on_features(self, images: int) -> None:
        """Handle that the features of this number of further images are computed."""

    def on_train_start(self, epochs: float, images: int, images_done: int, estimated_s: float) -> None:
        """Handle the start of training, or its resumption.

        An image counts once per epoch; `estimated_s` are the seconds until the model is finished.
        """

    def on_step(self, images_done: int) -> None:
        """Handle the end of a step; `images_done` counts from the first step of the training."""

    def on_epoch(self, row: Epoch) -> None:
        """Handle the end of an epoch, after its validation."""

    def on_message(self, message: str) -> None:
        """Handle information about the training: what was decided, and why."""

    def on_warning(self, message: str) -> None:
        """Handle a problem that does not stop the training."""
