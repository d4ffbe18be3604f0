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
from clf_runtime.pictures import Named, is_read_once, named_pictures
from clf_runtime.predictions import Failure, Result, lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from clf_runtime.annotate import Annotations

    class Watch(Protocol):
        """What wants to know how a run goes."""

        def noticed(self, what: str) -> None:
            """Something that the answers do not tell."""

        def begun(self, before: int) -> None:
            """The model is open; `before` pictures were answered by a run that was cut off."""

        def answered(self, result: Result) -> None:
            """A picture has its answer."""


class Order(NamedTuple):
    """What was asked for. A tuple, since a dataclass of as many fields takes 0.7 ms of a cold start, this 0.2."""

    model: Path
    pictures: tuple[str, ...]
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


class Tally:
    """What a run did, as it goes."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.before = 0  # pictures answered by a run that was cut off
        self.pictures = 0  # those included
        self.failures = 0  # likewise
        self._started = time.monotonic()

    def rate(self) -> float:
        """Pictures per second so far, of this run."""
        return (self.pictures - self.before) / max(time.monotonic() - self._started, 1e-9)


def answer(order: Order, write: Callable[[str], object], watch: Watch) -> Tally:
    """Classify what was named, and `write` the answers, or put them into the order's output file.

    Raises ModelRefused, MachineUnable, WrongUsage, DataRefused, OSError.
    """
    if order.output is not None or order.annotate is not None:
        order = _checked(order)
    classifier, pictures = _opened(order)
    if classifier.notice:
        watch.noticed(classifier.notice)
    tally = Tally(classifier.provider)
    annotations = None
    if order.annotate is not None:
        from clf_runtime.annotate import Annotations

        annotations = Annotations(order.annotate, classifier.spec.preprocess)
        pictures = annotations.noted(pictures)
    if order.output is not None:
        _into_file(order, order.output, classifier, pictures, annotations, tally, watch)
        return tally
    watch.begun(0)
    for line in lines(_results(order, classifier, pictures, annotations, tally, watch), order.output_format):
        write(line)
    return tally


def count(order: Order) -> int:
    """Count the pictures that are named, without touching one."""
    named = [each for each in order.pictures if not is_read_once(each)]
    return sum(1 for _ in named_pictures(named, order.recursive)) + len(order.pictures) - len(named)


def _checked(order: Order) -> Order:
    """Refuse, before anything is opened, what could not be written. Raises WrongUsage."""
    if order.output is not None:
        from clf_runtime import output

        order = order._replace(output=output.checked(order.output))
    if order.annotate is not None:
        from clf_runtime import annotate

        annotate.check(order.annotate, order.pictures, order.recursive)
    return order


def _opened(order: Order) -> tuple[Classifier, Iterator[Named]]:
    found = named_pictures(order.pictures, order.recursive)
    first = list(islice(found, 2))
    cores = order.threads or usable_cores()
    # One picture gets every core; of many, each gets its own.
    workers = cores if len(first) > 1 else 1
    classifier = Classifier.load(order.model, device=order.device, threads=cores, workers=workers)
    return classifier, chain(first, found)


def _results(
    order: Order,
    classifier: Classifier,
    pictures: Iterator[Named],
    annotations: Annotations | None,
    tally: Tally,
    watch: Watch,
) -> Iterator[Result]:
    results = classifier.predict_named(pictures, batch_size=order.batch_size, top=order.top)
    if order.threshold > 0:
        results = (each if isinstance(each, Failure) else each.known_from(order.threshold) for each in results)
    if annotations is not None:
        results = annotations.drawn(results)
    for result in results:
        tally.pictures += 1
        tally.failures += isinstance(result, Failure)
        watch.answered(result)
        yield result


def _into_file(
    order: Order,
    path: Path,
    classifier: Classifier,
    pictures: Iterator[Named],
    annotations: Annotations | None,
    tally: Tally,
    watch: Watch,
) -> None:
    from clf_runtime.output import Output

    with Output(path, _identity(order, classifier), order.resume) as output:
        rest = output.rest_of(pictures)
        if annotations is not None:
            annotations.passed_over()
        if output.discarded:
            watch.noticed(f"{path}: starting over; --resume would have gone on after {output.discarded:,} pictures")
        if order.resume and not output.before.pictures:
            watch.noticed(f"{path}: there is no unfinished run to go on with; starting from the beginning")
        before = output.before
        tally.before, tally.pictures, tally.failures = before.pictures, before.pictures, before.failures
        watch.begun(before.pictures)
        results = output.noted(_results(order, classifier, rest, annotations, tally, watch))
        for line in lines(results, order.output_format, continued=before.pictures > 0):
            output.write(line)


def _identity(order: Order, classifier: Classifier) -> dict[str, object]:
    """Give what decides the answers: only the same can be gone on with."""
    return {
        "clf-run": __version__,
        "model": classifier.file.sha256,
        "provider": classifier.provider,
        "--format": order.output_format,
        "--top": order.top,
        "--threshold": order.threshold,
        "folder": os.fsencode(Path.cwd()).decode("utf-8", "backslashreplace"),
    }
