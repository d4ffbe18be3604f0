"""Metrics of predictions, against scikit-learn's, and the matching of labels by name."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from clf_runtime.errors import DataError
from clf_runtime.evaluation.calibration import CALIBRATION_BINS, bin_by_confidence, compute_calibration_error
from clf_runtime.evaluation.labels import list_labels, match_labels, suggest_label
from clf_runtime.evaluation.metrics import (
    ScoredImages,
    compute_metrics,
    count_confusions,
    rank_confusions,
    rank_mistakes,
)

LABELS = tuple("abcdef")


def score(probabilities: np.ndarray, targets: np.ndarray) -> ScoredImages:
    """Return the predictions of a model with these probabilities (N, classes)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return ScoredImages(
        targets=targets,
        predicted=order[:, 0],
        confidence=probabilities.max(axis=1),
        probability=probabilities[np.arange(len(targets)), targets],
        rank=(order == targets[:, None]).argmax(axis=1),
    )


@pytest.fixture(scope="module")
def scored() -> ScoredImages:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 5, 300)  # "f" has no image
    logits = generator.normal(size=(300, 6)) + 2 * np.eye(6)[targets]
    exponentials = np.exp(logits)
    return score(exponentials / exponentials.sum(axis=1, keepdims=True), targets)


def test_precision_recall_and_f1_equal_those_of_scikit_learn(scored):
    found = compute_metrics(scored, LABELS, 3)
    precision, recall, f1, images = reference.precision_recall_fscore_support(
        scored.targets, scored.predicted, labels=range(6), zero_division=0
    )
    assert [row.label for row in found.classes] == list(LABELS)
    assert [row.images for row in found.classes] == images.tolist()
    assert [row.precision or 0 for row in found.classes] == pytest.approx(precision)
    assert [row.recall or 0 for row in found.classes] == pytest.approx(recall)
    assert [row.f1 or 0 for row in found.classes] == pytest.approx(f1)
    assert found.macro_f1 == pytest.approx(f1[:5].mean())
    assert found.balanced_accuracy == pytest.approx(recall[:5].mean())


def test_accuracy_top_accuracy_and_loss_equal_those_of_scikit_learn(scored):
    found = compute_metrics(scored, LABELS, 3)
    assert found.accuracy == pytest.approx(reference.accuracy_score(scored.targets, scored.predicted))
    assert found.interval[0] < found.accuracy < found.interval[1]
    assert found.accuracy < found.top_accuracy < 1
    assert found.top_accuracy == pytest.approx(float(np.mean(scored.rank <= 2)))
    assert found.loss == pytest.approx(-np.log(scored.probability).mean())


def test_top_k_is_at_most_the_number_of_classes(scored):
    found = compute_metrics(scored, LABELS, 99)
    assert (found.top, found.top_accuracy) == (6, 1)


def test_the_confusions_equal_the_matrix_of_scikit_learn(scored):
    matrix = np.zeros((6, 6), int)
    for (true, predicted), images in count_confusions(scored, 6).items():
        matrix[true, predicted] = images
    assert (matrix == reference.confusion_matrix(scored.targets, scored.predicted, labels=range(6))).all()


def test_ten_thousand_classes_take_no_quadratic_memory():
    targets = np.arange(10_000)
    predicted = np.roll(targets, 1)
    confusions = count_confusions(ScoredImages(targets, predicted, targets * 0.0, targets * 0.0, targets), 10_000)
    assert len(confusions) == 10_000
    assert confusions[5, 4] == 1


def test_the_most_frequent_confusions_come_first_and_correct_predictions_do_not_come():
    confusions = {(0, 0): 9, (0, 1): 2, (1, 0): 5, (1, 2): 2, (2, 2): 7}
    assert rank_confusions(confusions, 2) == [(1, 0, 5), (0, 1, 2)]


def test_the_most_confident_mistakes_come_first(scored):
    mistakes = rank_mistakes(scored)
    assert len(mistakes) == int((~scored.correct).sum())
    assert not scored.correct[mistakes].any()
    assert (np.diff(scored.confidence[mistakes]) <= 0).all()


def test_rejecting_low_scores_leaves_fewer_images_and_fewer_errors(scored):
    rows = compute_metrics(scored, LABELS, 1).thresholds
    assert (rows[0].threshold, rows[0].images) == (0, 300)
    assert rows[0].accuracy == compute_metrics(scored, LABELS, 1).accuracy
    assert [row.images for row in rows] == sorted((row.images for row in rows), reverse=True)
    assert rows[4].accuracy == pytest.approx(scored.correct[scored.confidence >= 0.8].mean())


def test_a_threshold_that_rejects_everything_has_no_accuracy():
    unsure = score(np.full((2, 4), 0.25), np.asarray([0, 1]))
    assert compute_metrics(unsure, "abcd", 1).thresholds[-1].accuracy is None


def test_a_probability_of_zero_has_a_finite_loss():
    certain = score(np.asarray([[1.0, 0.0]]), np.asarray([1]))
    assert 80 < compute_metrics(certain, "ab", 1).loss < 120


def test_a_class_that_does_not_occur_has_neither_precision_nor_recall():
    scored = score(np.asarray([[0.9, 0.1, 0.0]]), np.asarray([0]))
    present, absent = compute_metrics(scored, "abc", 1).classes[:2]
    assert (present.precision, present.recall, present.f1) == (1, 1, 1)
    assert (absent.precision, absent.recall, absent.f1) == (None, None, None)


def test_the_bins_contain_every_image_once_and_a_confidence_of_one():
    confidence = np.asarray([0.0, 0.05, 0.5, 0.999, 1.0])
    bins = bin_by_confidence(confidence, np.ones(5, bool))
    assert len(bins) == CALIBRATION_BINS
    assert [bin_.count for bin_ in bins if bin_.count] == [2, 1, 2]
    assert (bins[0].low, bins[-1].high, bins[-1].count) == (0, 1, 2)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    confidence = np.asarray([0.9] * 10 + [0.6] * 10)
    correct = np.asarray([True] * 9 + [False] + [True] * 2 + [False] * 8)
    assert compute_calibration_error(confidence, correct) == pytest.approx(0.2)


def test_labels_are_matched_by_name_not_by_position():
    match = match_labels(["dog", "cat", "cat"], ["cat", "cow", "dog"], ("photos", "model.onnx"))
    assert match.targets == {"cat": 0, "dog": 2}
    assert (match.respelled, match.unknown, match.unused) == ({}, (), ("cow",))


def test_labels_that_differ_in_case_spaces_hyphens_or_underscores_match_and_are_listed():
    match = match_labels(["Red_Fox", "T-shirt", " cow"], ["red fox", "t shirt", "cow"], ("photos", "model.onnx"))
    assert match.targets == {"Red_Fox": 0, "T-shirt": 1, " cow": 2}
    assert match.respelled == {"Red_Fox": "red fox", "T-shirt": "t shirt", " cow": "cow"}


def test_an_exact_label_wins_and_an_ambiguous_one_is_unknown():
    match = match_labels(["Cat", "CAT", "dog"], ["cat", "Cat", "dog"], ("photos", "model.onnx"))
    assert match.targets == {"Cat": 1, "dog": 2}
    assert match.unknown == ("CAT",)


def test_a_sign_is_part_of_a_label():
    match = match_labels(["-1", "2"], ["1", "2"], ("photos", "model.onnx"))
    assert match.unknown == ("-1",)


def test_data_of_another_model_is_one_clear_error():
    with pytest.raises(DataError) as error:
        match_labels(list("ABCDEFG"), ["ant", "bee"], ("photos", "model.onnx"))
    assert str(error.value) == (
        "photos: none of its labels is one of model.onnx (found A, B, C, D, E and 2 more; expected ant, bee); "
        "name the data of this model"
    )


def test_a_label_with_a_line_break_stays_on_one_line():
    assert list_labels(["a\nb", "c"]) == "'a\\nb', c"


def test_a_misspelled_label_has_a_suggestion():
    assert suggest_label("drss", ["Dress", "skirt"]) == "Dress"
    assert suggest_label("penguin", ["Dress", "skirt"]) is None
