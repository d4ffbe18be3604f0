"""What --tensorboard writes: the curves as event files, while the training runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from clf_runtime import artifacts
from clf_runtime.errors import MachineError
from clf_train.engine.evaluate import EvalResult
from clf_train.history import Epoch


class TensorBoardWriter:
    """Event files in the artifacts folder, or nothing where they are not wanted."""

    def __init__(self, folder: Path, wanted: bool, resumed: bool) -> None:
        """Begin; a former training's files give way unless it is gone on with. Raises MachineError."""
        self._writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MachineError(
                'tensorboard is not installed; pip install "clf-edge[tensorboard]", or leave out --tensorboard'
            ) from None
        place = folder / artifacts.TENSORBOARD
        if not resumed:
            shutil.rmtree(place, ignore_errors=True)
        self._writer = SummaryWriter(str(place))

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def epoch(self, row: Epoch) -> None:
        """Write an epoch's figures."""
        figures = {
            "loss/train": row.train_loss,
            "loss/validation": row.validation_loss,
            "accuracy/train": row.train_accuracy,
            "accuracy/validation": row.validation_accuracy,
            "learning_rate": row.learning_rate,
            "seconds": row.seconds,
        }
        self._write({name: value for name, value in figures.items() if value is not None}, row.epoch)

    def evaluation(self, evaluation: EvalResult, epochs: int) -> None:
        """Write what the finished model is worth."""
        quality = evaluation.quality
        self._write(
            {
                "held-out/accuracy": quality.accuracy,
                "held-out/loss": quality.loss,
                "held-out/calibration_error": quality.calibration_error,
                "held-out/calibration_error_before_temperature": evaluation.untempered.calibration_error,
            },
            epochs,
        )

    def _write(self, figures: dict[str, float], epoch: int) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()
