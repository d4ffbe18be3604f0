"""Event files for TensorBoard (--tensorboard), written while the training runs."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from clf_runtime import artifacts
from clf_runtime.errors import MachineError
from clf_train.engine.evaluate import EvalResult
from clf_train.history import Epoch


class TensorBoardWriter:
    """Writes event files into the artifacts folder; does nothing if they are not requested."""

    def __init__(self, folder: Path, is_requested: bool, is_resumed: bool) -> None:
        """Open the event files; those of an earlier run are removed unless it is resumed.

        Raises:
            MachineError: tensorboard is not installed.
        """
        self._writer: Any = None
        if not is_requested:
            return
        try:
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise MachineError(
                'tensorboard is not installed; pip install "clf-edge[tensorboard]", or leave out --tensorboard'
            ) from None
        path = folder / artifacts.TENSORBOARD
        if not is_resumed:
            shutil.rmtree(path, ignore_errors=True)
        path.mkdir(exist_ok=True)
        # Not torch's SummaryWriter, which names the file after the host.
        self._writer = RecordWriter((path / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}").open("wb"))
        self._write_event(file_version="brain.Event:2")

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write_epoch(self, row: Epoch) -> None:
        """Write the metrics of an epoch."""
        scalars = {
            "loss/train": row.train_loss,
            "loss/validation": row.validation_loss,
            "accuracy/train": row.train_accuracy,
            "accuracy/validation": row.validation_accuracy,
            "learning_rate": row.learning_rate,
            "seconds": row.seconds,
        }
        self._write({name: value for name, value in scalars.items() if value is not None}, row.epoch)

    def write_evaluation(self, evaluation: EvalResult, epochs: int) -> None:
        """Write the metrics on the test split."""
        metrics = evaluation.metrics
        self._write(
            {
                "test/accuracy": metrics.accuracy,
                "test/loss": metrics.loss,
                "test/calibration_error": metrics.calibration_error,
                "test/calibration_error_uncalibrated": evaluation.uncalibrated.calibration_error,
            },
            epochs,
        )

    def _write(self, scalars: dict[str, float], epoch: int) -> None:
        if self._writer is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
            self._write_event(step=epoch, summary=Summary(value=values))

    def _write_event(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._writer.flush()
