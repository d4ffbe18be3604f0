"""The analysis of labeled images, on small synthetic features in which everything that should be found is known."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clf_runtime.spec import ModelSpec, Normalize, Preprocess
from clf_train.data.cache import ArrayPixels
from clf_train.data.dataset import Int64Array
from clf_train.data_quality import analysis
from clf_train.data_quality.analysis import analyze
from clf_train.data_quality.confusions import rank_confused_pairs
from clf_train.data_quality.duplicates import DuplicatePair, find_duplicates, group_duplicates
from clf_train.data_quality.label_issues import LabelIssue, find_label_issues
from clf_train.data_quality.learning_curve import extrapolate
from clf_train.data_quality.out_of_fold import FOLDS, assign_folds, predict_out_of_fold, take_share
from clf_train.data_quality.outliers import find_outliers
from clf_train.data_quality.pool import ImagePool, pool_splits
from clf_train.engine.features import Float32Array, ImageFeatures
from clf_train.report.analysis import RunResults
from clf_train.report.report import html_from_run
from clf_train.report.splits import LabeledSplits, SplitImages
from clf_train.report.writing import write_report

LABELS = ("cat", "dog", "<script>bird")


def make_features(targets: Int64Array, seed: int = 0, dimensions: int = 64) -> Float32Array:
    """Return features in which each class has directions of its own, as a pretrained network computes them."""
    generator = np.random.default_rng(seed)
    centers = 3 * generator.random((int(targets.max()) + 1, dimensions))
    noisy = centers[targets] + generator.normal(0, 1, (len(targets), dimensions))
    return np.maximum(noisy, 0).astype(np.float32)


def make_pool(images: int = 300) -> ImagePool:
    targets = np.arange(images) % 3
    return ImagePool(make_features(targets), targets, np.zeros(images, dtype=np.int64), 3)


def make_run(flipped: tuple[int, ...] = ()) -> RunResults:
    """Return a run of 180 training, 30 validation and 60 test images; some training labels are wrong."""
    targets = np.arange(270) % 3
    features = make_features(targets)
    targets[list(flipped)] = (targets[list(flipped)] + 1) % 3
    features[200] = features[250]  # a validation image that is a test image, too, with another label
    pixels = np.random.default_rng(0).integers(0, 256, (270, 8, 8, 3), dtype=np.uint8)
    parts = [slice(0, 180), slice(180, 210), slice(210, 270)]
    splits = [
        SplitImages(
            tuple(f"{name}/{number}&.jpg" for number in range(270))[part], targets[part], ArrayPixels(pixels[part])
        )
        for name, part in zip(("train", "valid", "test"), parts, strict=True)
    ]
    probabilities = np.full((60, 3), 0.05, dtype=np.float32)
    probabilities[np.arange(60), targets[parts[2]]] = 0.9
    return RunResults(
        spec=ModelSpec(
            "cnn-small",
            LABELS,
            Preprocess("RGB", 8, 8, "squash", 1.0, "bilinear", (0, 0, 0)),
            Normalize((0.5,) * 3, (0.5,) * 3),
            1.0,
            None,
            None,
        ),
        history=[],
        pixels=splits[2].pixels,
        targets=splits[2].targets,
        probabilities=probabilities,
        names=splits[2].names,
        splits=LabeledSplits(*splits),
        features=ImageFeatures(*(features[part] for part in parts)),
    )


def test_flipped_labels_are_found_with_the_label_they_had() -> None:
    pool = make_pool()
    targets = pool.targets.copy()
    flipped = np.arange(0, 300, 20)
    targets[flipped] = (targets[flipped] + 1) % 3
    quality = analyze(replace(pool, targets=targets))
    assert quality is not None
    found = {issue.index: issue.suggested for issue in quality.label_issues}
    assert found.items() <= {int(index): int(pool.targets[index]) for index in flipped}.items()
    assert len(found) >= 10  # a label's image must reach the mean probability of its true class
    margins = [issue.margin for issue in quality.label_issues]
    assert margins == sorted(margins)


def test_right_labels_of_separable_classes_are_no_issues() -> None:
    quality = analyze(make_pool())
    assert quality is not None
    assert (quality.label_issues, quality.confused_pairs, quality.duplicates) == ((), (), ())


def test_the_threshold_of_a_class_is_the_mean_probability_of_its_images() -> None:
    # Class 0 has the threshold (0.9 * 4 + 0.4) / 5 = 0.8, class 1 has (0.6 * 4 + 0.2) / 5 = 0.52.
    first = np.array([0.9] * 4 + [0.4] + [0.4] * 4 + [0.8])
    targets = np.repeat([0, 1], 5)
    issues = find_label_issues(np.column_stack([first, 1 - first]).astype(np.float32), targets)
    assert [(issue.index, issue.given, issue.suggested) for issue in issues] == [(9, 1, 0), (4, 0, 1)]


def test_the_labels_of_a_class_with_fewer_images_than_folds_are_not_doubted() -> None:
    probabilities = np.array([[0.9, 0.1]] * 8 + [[0.95, 0.05]] * 3, dtype=np.float32)
    assert find_label_issues(probabilities, np.repeat([0, 1], [8, 3])) == ()


def test_every_image_is_predicted_by_a_probe_that_did_not_see_it_or_its_copy() -> None:
    pool = make_pool(90)
    groups = np.arange(90)
    groups[[3, 40, 77]] = 3
    folds = assign_folds(pool.targets, groups)
    assert len(set(folds[[3, 40, 77]].tolist())) == 1
    counts = np.bincount(folds, minlength=FOLDS)
    assert counts.max() - counts.min() <= 3
    assert np.allclose(predict_out_of_fold(pool, folds, 72).sum(axis=1), 1, atol=1e-5)


def test_a_smaller_share_is_a_subset_with_an_image_of_each_class() -> None:
    targets = np.repeat([0, 1, 2], [100, 20, 1])
    half, quarter = take_share(targets, 0.5), take_share(targets, 0.25)
    assert set(quarter) < set(half)
    assert np.bincount(targets[quarter]).tolist() == [25, 5, 1]
    assert len(take_share(targets, 1.2)) == 121


def test_copies_are_near_duplicates_and_other_images_are_not() -> None:
    features = make_pool(60).features.copy()
    features[50] = features[7] * 1.01
    pairs = find_duplicates(features)
    assert [(pair.first, pair.second) for pair in pairs] == [(7, 50)]
    assert pairs[0].similarity == pytest.approx(1, abs=1e-3)


def test_less_similar_images_are_near_duplicates_if_their_hashes_agree_too() -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(40, 256)).astype(np.float32)
    features[9] = 0.8 * features[2] + 0.6 * features[9]
    hashes = generator.integers(0, 256, (40, 32), dtype=np.uint8)
    assert find_duplicates(features, hashes) == ()
    hashes[9] = hashes[2]
    assert [(pair.first, pair.second) for pair in find_duplicates(features, hashes)] == [(2, 9)]


def test_chains_of_near_duplicates_are_one_group() -> None:
    pairs = (DuplicatePair(1, 4, 1.0), DuplicatePair(4, 3, 1.0), DuplicatePair(0, 5, 1.0))
    assert group_duplicates(6, pairs).tolist() == [0, 1, 2, 1, 1, 0]


def test_an_image_unlike_all_others_is_an_outlier() -> None:
    features = make_pool(120).features.copy()
    features[33] = np.where(np.arange(64) < 8, 20.0, 0.0)
    assert find_outliers(features)[0].index == 33
    assert find_outliers(features[:40]) == ()


@pytest.mark.parametrize(
    ("there", "back", "images", "issues", "advice"),
    [
        (9, 3, (100, 100), 4, "labels"),
        (9, 3, (30, 100), 0, "few"),
        (20, 15, (100, 100), 0, "overlap"),
        (12, 1, (100, 100), 0, "direction"),
        (6, 5, (100, 100), 0, "images"),
    ],
)
def test_each_confused_pair_has_the_advice_that_fits_its_counts(
    there: int, back: int, images: tuple[int, int], issues: int, advice: str
) -> None:
    targets = np.repeat([0, 1], images)
    predicted = targets.copy()
    predicted[:there] = 1
    predicted[images[0] : images[0] + back] = 0
    doubtful = [LabelIssue(number, 0, 1, 0.1, 0.9) for number in range(issues)]
    (pair,) = rank_confused_pairs(predicted, targets, 2, doubtful)
    assert (pair.first_as_second, pair.second_as_first, pair.advice) == (there, back, advice)
    assert pair.share == pytest.approx((there + back) / sum(images))


def test_a_power_law_is_extrapolated_with_an_interval_around_the_gain() -> None:
    sizes = [250, 500, 750, 1000]
    errors = [2 * size**-0.5 for size in sizes]
    images = 100_000
    wrong = np.stack([np.arange(images) < round(error * images) for error in errors])
    curve = extrapolate(sizes, wrong)
    assert [point.images for point in curve.points] == sizes
    assert curve.doubled.images == 2000
    assert curve.doubled.accuracy == pytest.approx(1 - 2 * 2000**-0.5, abs=1e-4)
    assert curve.gain_low < curve.gain < curve.gain_high
    assert curve.gain == pytest.approx(errors[-1] - 2 * 2000**-0.5, abs=1e-4)


def test_a_curve_that_gets_worse_promises_nothing() -> None:
    wrong = np.stack([np.arange(1000) < count for count in (100, 110, 120, 130)])
    curve = extrapolate([250, 500, 750, 1000], wrong)
    assert (curve.gain, curve.gain_low) == (0, 0)


def test_with_too_many_images_and_classes_nothing_is_analyzed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "MAX_PROBABILITIES", 899)
    assert analyze(make_pool(300)) is None


def test_the_pool_has_the_images_of_all_splits_even_if_one_is_empty() -> None:
    features = ImageFeatures(np.ones((3, 4), np.float32), np.zeros((0, 0), np.float32), np.ones((2, 4), np.float32))
    targets = [np.array([0, 1, 0]), np.array([], dtype=np.int64), np.array([1, 1])]
    pool = pool_splits(features, targets, 2)
    assert pool.splits.tolist() == [0, 0, 0, 2, 2]
    assert pool.features.shape == (5, 4)


def test_a_run_with_features_writes_the_report_all_images_and_a_table_of_likely_wrong_labels(tmp_path: Path) -> None:
    write_report(tmp_path, make_run(flipped=(10, 20)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.html", "label_issues.csv", "report.html"]
    with (tmp_path / "label_issues.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {(row["path"], row["split"], row["label"], row["suggested"]) for row in rows} <= {
        ("train/10&.jpg", "training", "<script>bird", "dog"),
        ("train/20&.jpg", "training", "cat", "<script>bird"),
        ("valid/200&.jpg", "validation", "<script>bird", "dog"),
    }
    assert all(float(row["margin"]) < 0 for row in rows)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{len(rows)} of 270 labels are likely wrong" in page
    assert "Twice as many images: about" in page
    assert "1 pair of nearly equal images" in page
    assert "different labels, one is a test image" in page
    assert "&lt;script&gt;bird?" in page
    assert page.count("<script") == 1


def test_without_features_the_report_says_how_to_get_the_analysis(tmp_path: Path) -> None:
    write_report(tmp_path, replace(make_run(), features=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.html", "report.html"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "clf-train --model efficientnet_lite0" in page
    assert "Likely wrong labels</h2>" not in page


def test_data_without_findings_has_a_sentence_for_each_section() -> None:
    run = make_run()
    assert run.features is not None
    quality = analyze(make_pool(60))
    page = html_from_run(run, quality)
    for sentence in (
        "No label looks wrong.",
        "at least 100 are needed",
        "No two classes are confused",
        "There are none.",
    ):
        assert sentence in page
