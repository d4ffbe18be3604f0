"""The files that explain a finished training run: report.html, images.html and label_issues.csv."""

from __future__ import annotations

from pathlib import Path

from clf_runtime import artifacts
from clf_train.data_quality.analysis import DataQuality, analyze
from clf_train.data_quality.pool import pool_splits
from clf_train.report.analysis import RunResults
from clf_train.report.gallery import html_from_predictions
from clf_train.report.label_table import csv_from_label_issues
from clf_train.report.report import html_from_run


def write_report(folder: Path, results: RunResults) -> None:
    """Write report.html and images.html, and label_issues.csv if features of the images are known.

    Raises:
        DataError: an image can no longer be read.
        OSError: a file cannot be written.
    """
    quality = analyze_data(results)
    # On Linux, a name can be any bytes.
    pages = {artifacts.REPORT: html_from_run(results, quality), artifacts.IMAGES: html_from_predictions(results)}
    for name, page in pages.items():
        (folder / name).write_bytes(page.encode("utf-8", "backslashreplace"))
    if quality is not None and results.splits is not None:
        table = csv_from_label_issues(quality.label_issues, results.splits, results.spec.labels)
        (folder / artifacts.LABEL_ISSUES).write_bytes(table.encode("utf-8", "surrogateescape"))


def analyze_data(results: RunResults) -> DataQuality | None:
    """Return what the features of a run's images say about them; None without features, or with too many images."""
    if results.features is None or results.splits is None:
        return None
    targets = [part.targets for part in results.splits.parts]
    return analyze(pool_splits(results.features, targets, len(results.spec.labels), results.hashes))
