"""The headline figures of report.html."""

from __future__ import annotations

from dataclasses import dataclass

from clf_runtime.evaluation.calibration import CALIBRATION_BINS
from clf_runtime.evaluation.statistics import wilson_interval
from clf_runtime.progress import format_duration
from clf_runtime.spec import Metrics
from clf_train.report.analysis import Predictions, RunResults
from clf_train.report.charts import format_percent


@dataclass(frozen=True)
class Figure:
    """One of the headline figures."""

    name: str
    value: str
    note: str


def build_figures(results: RunResults, predictions: Predictions) -> tuple[Figure, ...]:
    """Return the figures of the quality, then those of the model; the most important one is the first."""
    return (*_quality_figures(results, predictions), *_model_figures(results))


def _quality_figures(results: RunResults, predictions: Predictions) -> tuple[Figure, ...]:
    metrics = results.spec.metrics
    if metrics is None:
        correct, images = int(predictions.correct.sum()), len(predictions.targets)
        return (_accuracy_figure(correct, images), Figure("Test images", f"{images:,}", "not used for training"))
    return (
        _accuracy_figure(round(metrics.accuracy * metrics.images), metrics.images),
        Figure("Test images", f"{metrics.images:,}", f"split: {metrics.split}"),
        Figure("Loss", f"{metrics.loss:.4f}", "negative log-likelihood, nats"),
        _calibration_figure(metrics, results.uncalibrated),
    )


def _accuracy_figure(correct: int, images: int) -> Figure:
    low, high = wilson_interval(correct, images)
    interval = f"95\u00a0% interval {100 * low:.1f} to {100 * high:.1f}\u00a0%"
    return Figure("Accuracy", format_percent(correct / images), f"{correct:,} of {images:,} correct; {interval}")


def _calibration_figure(metrics: Metrics, uncalibrated: Metrics | None) -> Figure:
    before = ""
    if uncalibrated is not None:
        before = f"; {format_percent(uncalibrated.calibration_error)} before temperature scaling"
    note = f"expected (ECE), {CALIBRATION_BINS} bins{before}"
    return Figure("Calibration error", format_percent(metrics.calibration_error), note)


def _model_figures(results: RunResults) -> tuple[Figure, ...]:
    spec, history = results.spec, results.history
    preprocess = spec.preprocess
    seconds = sum(epoch.seconds for epoch in history)
    return (
        Figure("Temperature", f"{spec.temperature:.3g}", "divides the logits"),
        Figure("Classes", f"{len(spec.labels):,}", "labels to choose from"),
        Figure("Epochs", f"{len(history):,}", "passes over the training images"),
        Figure("Training time", format_duration(seconds).replace(" ", "\u00a0"), "without validation"),
        Figure(
            "Input",
            f"{preprocess.width} × {preprocess.height}",  # noqa: RUF001
            "pixels, " + ("gray" if preprocess.color == "L" else "RGB"),
        ),
    )
