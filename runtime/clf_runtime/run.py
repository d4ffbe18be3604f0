"""From what was asked of `clf-run` to the answers, written in order; read from here."""

from __future__ import annotations

import os
import time
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clf_runtime import __version__
from clf_runtime.classifier import Classifier
from clf_runtime.machine import usable_cores
from clf_runtime.predictions import Failure, Result, lines
from clf_runtime.sources import ImageSource, find_images, is_read_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from clf_runtime.sinks.annotate import Annotations

    class RunCallbacks(Protocol):
        """What wants to know how a run goes."""

        def noticed(self, what: str) -> None:
            """Something that the answers do not tell."""

        def begun(self, before: int) -> None:
            """The model is open; `before` images were answered by a run that was cut off."""

        def answered(self, result: Result) -> None:
            """An image has its answer."""


class RunOptions(NamedTuple):
    """What was asked for. A tuple, since a dataclass of as many fields takes 0.7 ms of a cold start, this 0.2."""

    model: Path
    images: tuple[str, ...]
    recursive: bool
    top: int
    threshold: float  # 0..1; answers with a score below it are "unknown"
    output_format: str
    device: str
    threads: int | None
    batch_size: int
    output: Path | None
    resume: bool
    annotate: Path | None


class RunStatistics:
    """What a run did, as it goes."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.before = 0  # images answered by a run that was cut off
        self.images = 0  # those included
        self.failures = 0  # likewise
        self._started = time.monotonic()

    def rate(self) -> float:
        """Images per second so far, of this run."""
        return (self.images - self.before) / max(time.monotonic() - self._started, 1e-9)


def answer(options: RunOptions, write: Callable[[str], object], callbacks: RunCallbacks) -> RunStatistics:
    """Classify what was named, and `write` the answers, or put them into the order's output file.

    Raises InvalidModelError, MachineError, UsageError, DataError, OSError.
    """
    if options.output is not None or options.annotate is not None:
        options = _checked(options)
    classifier, images = _opened(options)
    if classifier.warning:
        callbacks.noticed(classifier.warning)
    statistics = RunStatistics(classifier.provider)
    annotations = None
    if options.annotate is not None:
        from clf_runtime.sinks.annotate import Annotations

        annotations = Annotations(options.annotate, classifier.spec.preprocess)
        images = annotations.noted(images)
    if options.output is not None:
        _into_file(options, options.output, classifier, images, annotations, statistics, callbacks)
        return statistics
    callbacks.begun(0)
    for line in lines(_results(options, classifier, images, annotations, statistics, callbacks), options.output_format):
        write(line)
    return statistics


def count(options: RunOptions) -> int:
    """Count the images that are named, without touching one."""
    named = [each for each in options.images if not is_read_once(each)]
    return sum(1 for _ in find_images(named, options.recursive)) + len(options.images) - len(named)


def _checked(options: RunOptions) -> RunOptions:
    """Refuse, before anything is opened, what could not be written. Raises UsageError."""
    if options.output is not None:
        from clf_runtime.sinks import output

        options = options._replace(output=output.checked(options.output))
    if options.annotate is not None:
        from clf_runtime.sinks import annotate

        annotate.check(options.annotate, options.images, options.recursive)
    return options


def _opened(options: RunOptions) -> tuple[Classifier, Iterator[ImageSource]]:
    found = find_images(options.images, options.recursive)
    first = list(islice(found, 2))
    cores = options.threads or usable_cores()
    # One image gets every core; of many, each gets its own.
    workers = cores if len(first) > 1 else 1
    classifier = Classifier.load(options.model, device=options.device, threads=cores, workers=workers)
    return classifier, chain(first, found)


def _results(
    options: RunOptions,
    classifier: Classifier,
    images: Iterator[ImageSource],
    annotations: Annotations | None,
    statistics: RunStatistics,
    callbacks: RunCallbacks,
) -> Iterator[Result]:
    results = classifier.predict_sources(images, batch_size=options.batch_size, top=options.top)
    if options.threshold > 0:
        results = (each if isinstance(each, Failure) else each.known_from(options.threshold) for each in results)
    if annotations is not None:
        results = annotations.drawn(results)
    for result in results:
        statistics.images += 1
        statistics.failures += isinstance(result, Failure)
        callbacks.answered(result)
        yield result


def _into_file(
    options: RunOptions,
    path: Path,
    classifier: Classifier,
    images: Iterator[ImageSource],
    annotations: Annotations | None,
    statistics: RunStatistics,
    callbacks: RunCallbacks,
) -> None:
    from clf_runtime.sinks.output import Output

    with Output(path, _identity(options, classifier), options.resume) as output:
        rest = output.rest_of(images)
        if annotations is not None:
            annotations.passed_over()
        if output.discarded:
            callbacks.noticed(f"{path}: starting over; --resume would have gone on after {output.discarded:,} images")
        if options.resume and not output.before.images:
            callbacks.noticed(f"{path}: there is no unfinished run to go on with; starting from the beginning")
        before = output.before
        statistics.before, statistics.images, statistics.failures = before.images, before.images, before.failures
        callbacks.begun(before.images)
        results = output.noted(_results(options, classifier, rest, annotations, statistics, callbacks))
        for line in lines(results, options.output_format, continued=before.images > 0):
            output.write(line)


def _identity(options: RunOptions, classifier: Classifier) -> dict[str, object]:
    """Give what decides the answers: only the same can be gone on with."""
    return {
        "clf-run": __version__,
        "model": classifier.file.sha256,
        "provider": classifier.provider,
        "--format": options.output_format,
        "--top": options.top,
        "--threshold": options.threshold,
        "folder": os.fsencode(Path.cwd()).decode("utf-8", "backslashreplace"),
    }
