"""Evaluate exported models on labeled images: every image runs through the pipeline of `clf-run`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from clf_runtime.classifier import Classifier
from clf_runtime.decoding import Decoder
from clf_runtime.errors import DataError, ImageError
from clf_runtime.evaluation.compare import compare
from clf_runtime.evaluation.labels import LabelMatch, list_labels, match_labels, suggest_label
from clf_runtime.evaluation.latency import LATENCY_IMAGES, Latency, measure_latency
from clf_runtime.evaluation.metrics import Int64Array, ScoredImages, compute_metrics
from clf_runtime.evaluation.results import Evaluation, ModelResult
from clf_runtime.evaluation.selection import EvalImages, SplitChoice, select_images
from clf_runtime.labeled import Columns
from clf_runtime.machine import usable_cores
from clf_runtime.pipeline import run_pipeline
from clf_runtime.predictions import Failure
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import CPU, Float32Array


class EvalCallbacks(Protocol):
    """Called as an evaluation proceeds."""

    def on_warning(self, message: str) -> None:
        """Something that a person should know."""

    def on_start(self, images: int) -> None:
        """The models are open; so many images will be classified, counted once for each model."""

    def on_image(self) -> None:
        """An image is classified, or failed."""


@dataclass(frozen=True)
class EvalOptions:
    """The options of an evaluation."""

    models: tuple[Path, ...]
    data: Path
    columns: Columns
    split: SplitChoice | None
    device: str
    threads: int | None
    batch_size: int
    top: int
    require_signature: tuple[Path, ...] = ()  # public keys, one of which must have signed each model

    @property
    def cores(self) -> int:
        """How many cores to use."""
        return self.threads or usable_cores()


def evaluate(options: EvalOptions, callbacks: EvalCallbacks) -> Evaluation:
    """Evaluate models, one after the other, on the same images.

    Raises:
        InvalidModelError: A model cannot be loaded.
        DataError: The data cannot be used, has no label of a model, or none of its images can be read.
        MachineError: The device does not work.
        UsageError: An option does not apply.
        OSError: A file cannot be read.
    """
    # All models first: the evaluation of many images must not end with an error in the last model.
    classifiers = [_load(path, options, workers=options.cores) for path in options.models]
    models = [classifier.file for classifier in classifiers]
    images = select_images(options.data, options.columns, options.split, models)
    matches = [
        match_labels(images.labels, classifier.spec.labels, (str(options.data), str(classifier.file.path)))
        for classifier in classifiers
    ]
    warnings = [*images.warnings, *(classifier.warning for classifier in classifiers)]
    for classifier, match in zip(classifiers, matches, strict=True):
        warnings += _describe_match(match, images, classifier)
    warnings = list(dict.fromkeys(filter(None, warnings)))
    for warning in warnings:
        callbacks.on_warning(warning)
    callbacks.on_start(sum(len(_known(match, images)) for match in matches))
    results = []
    for classifier, match in zip(classifiers, matches, strict=True):
        with classifier:
            results.append(_evaluate_model(classifier, match, images, options, callbacks.on_image))
    comparisons = tuple(compare(results[0], other, images) for other in results[1:])
    return Evaluation(images, tuple(results), comparisons, tuple(warnings))


def _load(path: Path, options: EvalOptions, workers: int) -> Classifier:
    return Classifier.load(
        path,
        device=options.device,
        threads=options.cores,
        workers=workers,
        require_signature=options.require_signature,
    )


def _describe_match(match: LabelMatch, images: EvalImages, classifier: Classifier) -> list[str]:
    """Return what a person should know about the labels of the data and of a model, one line each."""
    model, counts, lines = classifier.file.path, images.counts, []
    if match.respelled:
        pairs = [f"{own} = {other}" for own, other in match.respelled.items()]
        lines.append(f"{model}: labels that differ only in case, spaces, hyphens or underscores: {list_labels(pairs)}")
    if match.unknown:
        left_out = sum(counts[label] for label in match.unknown)
        hints = [
            f"{label} (is it {suggestion}?)" if (suggestion := suggest_label(label, classifier.spec.labels)) else label
            for label in match.unknown
        ]
        lines.append(
            f"{model}: {left_out:,} images are left out, because the model does not have their labels: "
            f"{list_labels(hints)}"
        )
    if match.unused:
        lines.append(
            f"{model}: {len(match.unused):,} of its {len(classifier.spec.labels):,} labels have no image: "
            f"{list_labels(match.unused)}"
        )
    return lines


def _known(match: LabelMatch, images: EvalImages) -> list[int]:
    """Return the positions of the images whose label the model has."""
    return [position for position, label in enumerate(images.labels) if label in match.targets]


@dataclass
class _Scores:
    """What a model has returned so far, and what could not be read."""

    positions: list[int] = field(default_factory=list)
    rows: list[tuple[int, int, float, float, int]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, position: int, target: int, probabilities: Float32Array) -> None:
        # A graph that overflows in float16 returns nan; such an image is a mistake without confidence.
        row = np.nan_to_num(probabilities)
        own, best = row[target], int(row.argmax())
        # Of equal probabilities, the first class ranks highest, as in argmax.
        rank = int((row > own).sum() + (row[:target] == own).sum())
        self.positions.append(position)
        self.rows.append((target, best, float(row[best]), float(own), rank))

    def to_scored_images(self) -> ScoredImages:
        targets, predicted, confidence, probability, rank = map(np.asarray, zip(*self.rows, strict=True))
        return ScoredImages(targets, predicted, confidence, probability, rank)


def _evaluate_model(
    classifier: Classifier,
    match: LabelMatch,
    images: EvalImages,
    options: EvalOptions,
    on_image: Callable[[], None],
) -> ModelResult:
    positions = _known(match, images)

    def infer(pixels: UInt8Array) -> list[Float32Array]:
        return list(classifier.run(pixels)[1])

    scores = _Scores()
    started = time.perf_counter()
    outputs = run_pipeline(
        images.sources(positions), infer, Decoder(classifier.spec.preprocess), options.cores, options.batch_size
    )
    for position, (source, output) in zip(positions, outputs, strict=True):
        if isinstance(output, ImageError):
            scores.failures.append(Failure(source.name, output.kind, str(output)))
        else:
            scores.add(position, match.targets[images.labels[position]], output)
        on_image()
    elapsed_s = time.perf_counter() - started
    if not scores.rows:
        raise DataError(
            f"{options.data}: none of its {len(positions):,} images can be read; the first is {scores.failures[0]}"
        )
    scored = scores.to_scored_images()
    read = np.asarray(scores.positions, np.int64)
    return ModelResult(
        file=classifier.file,
        provider=classifier.provider,
        match=match,
        positions=read,
        scored=scored,
        metrics=compute_metrics(scored, classifier.spec.labels, options.top),
        failures=tuple(scores.failures),
        throughput=len(positions) / elapsed_s,
        latency=_measure_latency(classifier, read, images, options),
    )


def _measure_latency(classifier: Classifier, read: Int64Array, images: EvalImages, options: EvalOptions) -> Latency:
    """Measure some of the images that could be read, spread over all, one at a time with all cores."""
    some = read[np.unique(np.linspace(0, len(read) - 1, LATENCY_IMAGES + 1).astype(int))].tolist()
    if options.cores == 1 or classifier.provider != CPU:
        return measure_latency(classifier, images.sources(some))
    with _load(classifier.file.path, options, workers=1) as alone:
        return measure_latency(alone, images.sources(some))
