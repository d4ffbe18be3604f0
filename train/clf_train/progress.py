"""The progress of a training run on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from clf_runtime.command import say
from clf_runtime.errors import escape
from clf_runtime.progress import format_duration
from clf_train import torchrun
from clf_train.class_table import lines_from_findings

if TYPE_CHECKING:
    from clf_train.data.findings import DataFindings
    from clf_train.history import Epoch

_SECONDS_BETWEEN_LINES = 60  # without a progress bar


class Progress:
    """Progress bars at a terminal, plain lines elsewhere, and nothing from processes other than the main one.

    Implements `clf_train.callbacks.TrainCallbacks`.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._prints = torchrun.is_main_process()
        self._has_bar = self._prints and sys.stderr.isatty()
        self._epochs = 0.0
        self._throughput = Throughput(0, 0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_bar()

    def on_decode_start(self, images: int) -> None:
        """See TrainCallbacks."""
        if images:
            self._open_bar(images, "decoding")

    def on_decode(self, images: int) -> None:
        """See TrainCallbacks."""
        if self._bar is not None:
            self._bar.update(images)

    def on_data(self, findings: DataFindings) -> None:
        """See TrainCallbacks."""
        self._close_bar()
        for line in lines_from_findings(findings):
            self._say(line)

    def on_features_start(self, images: int) -> None:
        """See TrainCallbacks."""
        self._close_bar()
        self._throughput = Throughput(images, 0)
        self._open_bar(images, "computing features")

    def on_features(self, images: int) -> None:
        """See TrainCallbacks."""
        if self._bar is not None:
            self._bar.update(images)
        self._throughput.images_done += images
        if self._is_line_due:
            self._say(f"{self._throughput.share_done} of the features computed, {self._throughput.report()}")

    def on_train_start(self, epochs: float, images: int, images_done: int, estimated_s: float) -> None:
        """See TrainCallbacks."""
        self._close_bar()
        self._epochs = epochs
        if not images:
            return
        self._throughput = Throughput(images, images_done)
        if images_done:
            self._say(f"resuming with {self._throughput.share_done} of the training done")
        unit = "epoch" if epochs == 1 else "epochs"
        self._say(f"training {epochs:g} {unit}: about {format_duration(max(1.0, round(estimated_s)))}")
        self._open_bar(images, "training", images_done)

    def on_step(self, images_done: int) -> None:
        """See TrainCallbacks."""
        if self._bar is not None:
            self._bar.update(images_done - self._throughput.images_done)
        self._throughput.images_done = images_done
        if self._is_line_due:
            self._say(f"{self._throughput.share_done} of the training done, {self._throughput.report()}")

    def on_epoch(self, row: Epoch) -> None:
        """See TrainCallbacks."""
        accuracy = format_percent(row.train_accuracy)
        line = f"epoch {row.epoch}/{self._epochs:g}: loss {row.train_loss:.3f}, accuracy {accuracy}"
        if row.validation_accuracy is not None:
            line += f", validation accuracy {format_percent(row.validation_accuracy)}"
        if self._bar is not None:
            self._bar.set_description(line)
        else:
            self._say(f"{line}, {self._throughput.report()}")

    def on_message(self, message: str) -> None:
        """See TrainCallbacks."""
        self._say(message)

    def on_warning(self, message: str) -> None:
        """See TrainCallbacks."""
        self._say(f"warning: {message}")

    @property
    def _is_line_due(self) -> bool:
        """Whether it is time for a line, where no bar shows the progress."""
        return self._bar is None and self._throughput.seconds_since_report >= _SECONDS_BETWEEN_LINES

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(escape(line), file=sys.stderr)
        elif self._prints:
            say(line)

    def _open_bar(self, total: int, description: str, done: int = 0) -> None:
        if self._has_bar:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=description, unit=" images", dynamic_ncols=True)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class Throughput:
    """How fast a training run sees its images, and how long the rest takes."""

    def __init__(self, images: int, images_done: int) -> None:
        """`images_done` of `images` were seen before this process started."""
        self.images_done = images_done
        self._images = images
        self._images_at_start = images_done
        self._started = self._reported = time.monotonic()

    @property
    def seconds_since_report(self) -> float:
        """Seconds since the last report."""
        return time.monotonic() - self._reported

    @property
    def share_done(self) -> str:
        """How much of the training is done, like 38 %."""
        return f"{100 * self.images_done / self._images:.0f} %"

    def report(self) -> str:
        """Return the mean speed, validation included, and the time left at this speed."""
        self._reported = time.monotonic()
        mean = (self.images_done - self._images_at_start) / max(self._reported - self._started, 1e-9)
        images_left = self._images - self.images_done
        left = f", {format_duration(images_left / mean)} left" if mean and images_left > 0 else ""
        return f"{mean:,.0f} images/s{left}"


def format_percent(share: float) -> str:
    """Return a share of 0..1 as a percentage with two decimals."""
    return f"{100 * share:.2f} %"
