"""One call of `clf-run`, from its options to the results, written in order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clf_runtime import __version__
from clf_runtime.predictions import FORMATTERS, Failure, Prediction, Result
from clf_runtime.sources import ImageSource, find_images, is_read_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from clf_runtime.classifier import Classifier
    from clf_runtime.remote import RemoteClassifier
    from clf_runtime.sinks.annotate import Annotations
    from clf_runtime.sinks.output import Output

    class RunCallbacks(Protocol):
        """Called as a run proceeds."""

        def on_warning(self, message: str) -> None:
            """Something that the results do not show."""

        def on_start(self, resumed: int) -> None:
            """The model is open; an interrupted run has classified `resumed` images already."""

        def on_result(self, result: Result) -> None:
            """An image has its result."""


class RunOptions(NamedTuple):
    """The options of a run. A NamedTuple: as a dataclass it takes 0.7 ms of a cold start instead of 0.2 ms."""

    model: Path
    images: tuple[str, ...]
    recursive: bool
    top: int
    threshold: float  # 0..1; predictions with a lower score are labeled "unknown"
    output_format: str
    device: str
    threads: int | None
    batch_size: int
    max_image_bytes: int
    output: Path | None
    resume: bool
    annotate: Path | None
    server: str | None  # the address of a clf-serve that classifies; `model` and what follows from it do not matter
    require_signature: tuple[Path, ...]  # public keys, one of which must have signed the model


class RunStatistics:
    """Counts of a run in progress.

    Attributes:
        provider: onnxruntime's name of the execution provider.
        resumed: Images that an interrupted run has classified.
        images: All images so far, with these.
        failures: Those that could not be read.
    """

    def __init__(self, provider: str) -> None:
        """Start counting and start the clock."""
        self.provider = provider
        self.resumed = 0
        self.images = 0
        self.failures = 0
        self._started = time.monotonic()

    def resume(self, images: int, failures: int) -> None:
        """Continue the counts of an interrupted run."""
        self.resumed, self.images, self.failures = images, images, failures

    def count(self, result: Result) -> None:
        """Count one result."""
        self.images += 1
        self.failures += isinstance(result, Failure)

    def rate(self) -> float:
        """Return the images per second of this run so far."""
        return (self.images - self.resumed) / max(time.monotonic() - self._started, 1e-9)


class Run:
    """Classifies the images of one call of `clf-run` and writes the results."""

    _classifier: Classifier | RemoteClassifier
    _statistics: RunStatistics
    _annotations: Annotations | None

    def __init__(self, options: RunOptions, write: Callable[[str], object], callbacks: RunCallbacks) -> None:
        """Store what to do.

        Args:
            options: The options.
            write: Takes the output in pieces, unless the options name a file for it.
            callbacks: Called as the run proceeds.
        """
        self._options = options
        self._write = write
        self._callbacks = callbacks

    def execute(self) -> RunStatistics:
        """Classify all images, and return the final counts.

        Raises:
            InvalidModelError: The model cannot be loaded.
            MachineError: The device does not work, or another process writes the output.
            UsageError: The output cannot be written where the options say.
            DataError: The interrupted run to resume is a different one.
            OSError: A file cannot be read or written.
        """
        target = self._check_targets()
        sources = find_images(self._options.images, self._options.recursive, self._options.max_image_bytes)
        first = list(islice(sources, 2))
        self._load(is_single=len(first) < 2)
        if target is None:
            self._callbacks.on_start(0)
            self._classify(chain(first, sources), self._write_result)
        else:
            self._write_file(target, chain(first, sources))
        return self._statistics

    def _check_targets(self) -> Path | None:
        """Check, before anything is loaded, where results are written. Return the file, links followed."""
        target = None
        if self._options.output is not None:
            from clf_runtime.sinks import output

            target = output.check_target(self._options.output)
        if self._options.annotate is not None:
            from clf_runtime.sinks import annotate

            annotate.check_folder(self._options.annotate, self._options.images, self._options.recursive)
        return target

    def _load(self, is_single: bool) -> None:
        options = self._options
        self._annotations = None
        if options.server is not None:
            from clf_runtime.remote import connect

            self._classifier = connect(options.server, options.max_image_bytes)
        else:
            self._classifier = _load_model(options, is_single)
            if options.annotate is not None:
                from clf_runtime.sinks.annotate import Annotations

                preprocess = self._classifier.spec.preprocess
                self._annotations = Annotations(options.annotate, preprocess, options.max_image_bytes)
                self._annotations.create_folder()
        if self._classifier.warning:
            self._callbacks.on_warning(self._classifier.warning)
        self._statistics = RunStatistics(self._classifier.provider)

    def _write_file(self, target: Path, sources: Iterator[ImageSource]) -> None:
        from clf_runtime.sinks.output import Output

        with Output(target, self._identity(), self._statistics, self._options.resume) as output:
            if output.discarded:
                self._callbacks.on_warning(
                    f"{target}: starting over; --resume would have continued after {output.discarded:,} images"
                )
            if self._options.resume and not self._statistics.resumed:
                self._callbacks.on_warning(
                    f"{target}: there is no interrupted run to resume; starting from the beginning"
                )
            self._skip_classified(sources, output)
            self._callbacks.on_start(self._statistics.resumed)
            if not output.is_complete:
                self._classify(sources, output.write)

    def _skip_classified(self, sources: Iterator[ImageSource], output: Output) -> None:
        """Skip the images that the interrupted run has classified. Raises DataError if they are different ones."""
        for source in islice(sources, self._statistics.resumed):
            output.skip(source.name)
            if self._annotations is not None:
                self._annotations.skip(source)
        output.check_skipped()

    def _classify(self, sources: Iterator[ImageSource], write: Callable[[str | None, str], object]) -> None:
        """Classify images, and write name and text of each."""
        options = self._options
        formatter = FORMATTERS[options.output_format](self._statistics.resumed > 0)
        write(None, formatter.header())
        for source, result in self._classifier.predict_sources(sources, batch_size=options.batch_size, top=options.top):
            if options.threshold > 0 and isinstance(result, Prediction):
                result = result.apply_threshold(options.threshold)
            if self._annotations is not None:
                self._annotations.draw(source, result)
            self._statistics.count(result)
            self._callbacks.on_result(result)
            write(source.name, formatter.format(result))
        write(None, formatter.footer())

    def _write_result(self, name: str | None, text: str) -> None:
        if text:
            self._write(text)

    def _identity(self) -> dict[str, object]:
        """Return everything that the results depend on: an interrupted run is resumed only if it is the same."""
        return {
            "clf-run": __version__,
            "model": self._classifier.sha256,
            "provider": self._classifier.provider,
            "--format": self._options.output_format,
            "--top": self._options.top,
            "--threshold": self._options.threshold,
            "--max-image-bytes": self._options.max_image_bytes,
            "folder": os.fsencode(Path.cwd()).decode("utf-8", "backslashreplace"),
        }


def _load_model(options: RunOptions, is_single: bool) -> Classifier:
    from clf_runtime.classifier import Classifier
    from clf_runtime.machine import usable_cores

    cores = options.threads or usable_cores()
    return Classifier.load(
        options.model,
        device=options.device,
        threads=cores,
        workers=1 if is_single else cores,  # one image uses all cores; of many, each core has its own
        max_image_bytes=options.max_image_bytes,
        require_signature=options.require_signature,
    )


def count_images(options: RunOptions) -> int:
    """Return the number of images that the arguments name, without opening one."""
    arguments = [argument for argument in options.images if not is_read_once(argument)]
    read_once = len(options.images) - len(arguments)
    return sum(1 for _ in find_images(arguments, options.recursive)) + read_once
