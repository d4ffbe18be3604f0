"""One call of `clf-run --stream`: frames from stdin, a record for each, or for each change of the label.

One thread per core takes a frame, decodes and classifies it, and writes its result once those of all earlier frames are
written: handing results to another thread took 5 % of the time. With --every these threads also read the stream, in
turn; otherwise another one reads it, because old frames must be read before they can be dropped.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clf_runtime.classifier import Classifier
from clf_runtime.errors import ImageError
from clf_runtime.machine import usable_cores
from clf_runtime.predictions import Failure, Result
from clf_runtime.session import Float32Array
from clf_runtime.streams.frames import FrameSplitter
from clf_runtime.streams.labels import LabelOptions, StreamLabels
from clf_runtime.streams.reader import EveryFrame, Frame, FrameSource, LatestFrame, read_frames
from clf_runtime.streams.statistics import StreamStatistics
from clf_runtime.streams.walkers import MAX_FRAME_BYTES

# Frames per core that are taken and not yet written: one that runs, and one that waits for a slower one before it.
_FRAMES_PER_CORE = 2

_SECONDS_BETWEEN_REPORTS = 10.0
_SECONDS_TO_FINISH = 1.0


@dataclass(frozen=True)
class StreamOptions:
    """The options of `clf-run --stream`."""

    model: Path
    device: str
    threads: int | None
    max_image_bytes: int
    keeps_latest: bool  # drop frames that the model is too slow for; otherwise the camera waits
    labels: LabelOptions
    require_signature: tuple[Path, ...] = ()


class StreamRun:
    """Classifies the frames of a stream and writes the results.

    Attributes:
        statistics: The counts so far, also after an exception.
    """

    def __init__(self, options: StreamOptions, write: Callable[[str], object], warn: Callable[[str], object]) -> None:
        """Load the model.

        Args:
            options: The options.
            write: Takes the records, one at a time.
            warn: Takes what the records do not show.

        Raises:
            InvalidModelError: The model cannot be loaded.
            MachineError: The device does not work.
            UsageError: The device is unknown.
        """
        self._options = options
        self._write = write
        self._warn = warn
        self._undecodable = 0
        self._next_report_s = 0.0
        self._cores = options.threads or usable_cores()
        self._classifier = Classifier.load(
            options.model,
            device=options.device,
            threads=self._cores,
            workers=self._cores,
            max_image_bytes=options.max_image_bytes,
            require_signature=options.require_signature,
        )
        if self._classifier.warning:
            self._warn(self._classifier.warning)
        self._frames: FrameSource = LatestFrame() if options.keeps_latest else EveryFrame()
        self._slots = threading.Semaphore(self._cores * _FRAMES_PER_CORE)
        self._turn = threading.Lock()
        self._taken = 0
        self._output = threading.Lock()
        self._finished: dict[int, tuple[Frame, Float32Array | ImageError]] = {}  # by the order in which they were taken
        self._written = 0
        self._ended = threading.Semaphore(0)
        self._error: Exception | None = None
        self._labels = StreamLabels(self._classifier, options.labels)
        self.statistics = StreamStatistics(self._classifier.provider)

    def execute(self, read: Callable[[], bytes]) -> None:
        """Classify all frames.

        Args:
            read: Waits for the next bytes of the stream, and returns none at its end.

        Raises:
            DataError: The stream contains no frames.
            MachineError: The device fails.
            OSError: The stream cannot be read, or the results cannot be written.
        """
        splitter = FrameSplitter(min(MAX_FRAME_BYTES, self._options.max_image_bytes))
        self._started = time.monotonic()
        self._frames.begin(read_frames(read, splitter))
        for _ in range(self._cores):
            threading.Thread(target=self._work, name="clf-stream-worker", daemon=True).start()
        try:
            for _ in range(self._cores):
                self._ended.acquire()
        finally:
            self._frames.close()
            # After a signal: finish a record that is being written, unless its reader blocks, and write no other.
            self._output.acquire(timeout=_SECONDS_TO_FINISH)
            self.statistics.dropped = self._frames.dropped
            self.statistics.damaged = self._frames.damaged + self._undecodable
        if self._error is not None:
            raise self._error
        self._frames.check()

    def _work(self) -> None:
        """In a thread per core: classify the next frame and write what is finished, until the end of the stream."""
        try:
            while (taken := self._take()) is not None:
                order, frame = taken
                self._finish(order, frame, self._classify(frame))
        except Exception as error:  # raised again in the main thread
            self._error = self._error or error
            self._frames.close()
            self._slots.release(self._cores)
            self._ended.release(self._cores)  # a thread that waits for the stream is not waited for
        else:
            self._ended.release()

    def _take(self) -> tuple[int, Frame] | None:
        with self._turn:
            self._slots.acquire()
            frame = self._frames.take() if self._error is None else None
            if frame is None:
                self._slots.release()
                return None
            self._taken += 1
            return self._taken, frame

    def _classify(self, frame: Frame) -> Float32Array | ImageError:
        try:
            pixels = self._classifier.decoder.decode(frame.content)
        except ImageError as error:
            return error
        probabilities: Float32Array = self._classifier.run(pixels[None])[1][0]
        return probabilities

    def _finish(self, order: int, frame: Frame, outcome: Float32Array | ImageError) -> None:
        """Write the result, and those that waited for it; or let it wait for an earlier one."""
        with self._output:
            self._finished[order] = frame, outcome
            while (item := self._finished.pop(self._written + 1, None)) is not None:
                self._written += 1
                self._write_result(*item)
                self._slots.release()

    def _write_result(self, frame: Frame, outcome: Float32Array | ImageError) -> None:
        time_s = frame.arrived - self._started
        if isinstance(outcome, ImageError):
            self._undecodable += not isinstance(frame.content, ImageError)
            self._write_failure(frame, Failure(None, outcome.kind, str(outcome)), time_s)
            return
        prediction = self._labels.update(outcome, time_s)
        self.statistics.count(frame.arrived)  # first, so that a summary after Ctrl-C counts each frame that was written
        if prediction is not None:
            self._write(self._record(frame, prediction, time_s))

    def _write_failure(self, frame: Frame, failure: Failure, time_s: float) -> None:
        if not self._options.labels.only_changes:
            self._write(self._record(frame, failure, time_s))
        elif time_s >= self._next_report_s:
            self._next_report_s = time_s + _SECONDS_BETWEEN_REPORTS
            damaged = frame.damaged + self._undecodable
            self._warn(f"frame {frame.number:,}: {failure.kind}: {failure.message} ({damaged:,} damaged so far)")

    def _record(self, frame: Frame, result: Result, time_s: float) -> str:
        record = {
            "frame": frame.number,
            "time": round(time_s, 3),
            **result.to_dict(),
            "dropped": frame.dropped,
            "damaged": frame.damaged + self._undecodable,
        }
        del record["path"]
        return json.dumps(record) + "\n"
