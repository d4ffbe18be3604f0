"""Training that goes wrong says so, and training that goes well on a few images does not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clf_train.engine.collapse import CollapseMonitor
from clf_train.history import Epoch
from clf_train.recipe import Recipe

RATE = 0.1


def make_monitor(train: int, validation: int, classes: int = 2, epochs: float = 12) -> CollapseMonitor:
    """Return a monitor of a training on this number of images in classes of the same size."""
    targets = (np.arange(images, dtype=np.int64) % classes for images in (train, validation))
    return CollapseMonitor(*targets, Recipe(epochs=epochs, batch_size=16, learning_rate=RATE))


def make_history(validation: list[float], training: float = 0.9) -> list[Epoch]:
    return [Epoch(number, RATE, 1.0, training, 1.0, accuracy, 1.0) for number, accuracy in enumerate(validation, 1)]


def first_warning(monitor: CollapseMonitor, history: list[Epoch]) -> tuple[int, str] | None:
    """Return the epoch of the warning during the training, and the warning."""
    for epoch in range(1, len(history) + 1):
        warning = monitor.check(history[:epoch])
        if warning:
            assert [monitor.check(history[:later]) for later in range(epoch, len(history) + 1)].count(None) >= 1
            return epoch, warning
    return None


def test_a_pretrained_network_that_loses_its_weights_causes_a_warning_with_advice():
    history = make_history([22 / 24, 11 / 24, 11 / 24, 13 / 24, 13 / 24])
    monitor = make_monitor(221, 24)
    assert first_warning(monitor, history) == (
        3,
        "the validation accuracy fell from 91.7% (epoch 1) to 45.8% (epoch 3); "
        "try --learning-rate 0.01 (now 0.1); Ctrl-C stops the training",
    )
    assert monitor.conclude(history) == (
        "the validation accuracy fell from 91.7% (epoch 1) to 54.2% (epoch 5) at the end; "
        "train again: try --learning-rate 0.01 (now 0.1)",
    )


@pytest.mark.parametrize(
    "validation",
    [
        [14 / 15, 7 / 15, 8 / 15, 13 / 15],  # an interval of 15 images is wide
        [0.9, 0.3, 0.8, 0.9],  # one epoch is an outlier
        [8 / 15, 7 / 15, 9 / 15, 8 / 15, 8 / 15, 9 / 15],  # it learns, slowly
    ],
)
def test_a_few_images_cause_no_false_alarm(validation):
    monitor = make_monitor(135, 15)
    assert first_warning(monitor, make_history(validation)) is None
    assert monitor.conclude(make_history(validation)) == ()


def test_a_network_that_learns_nothing_causes_a_warning():
    history = make_history([0.1, 0.08, 0.1, 0.1], training=0.104)
    epoch, warning = first_warning(make_monitor(1000, 100, classes=10), history)
    assert epoch == 3
    assert warning.startswith(
        "the validation accuracy stays at chance level (10.0%, while 10.0% of the images are of the largest class): "
        "the network learns nothing; check the labels with --preview, or try --learning-rate 0.01"
    )


def test_the_warm_up_of_a_long_training_is_no_reason_for_a_warning():
    history = make_history([0.1] * 14, training=0.1)
    assert first_warning(make_monitor(1000, 100, classes=10, epochs=60), history) is None
    assert first_warning(make_monitor(1000, 100, classes=10, epochs=60), [*history, *history]) is not None


def test_memorized_training_images_are_told_from_a_network_that_learns_nothing():
    _, warning = first_warning(make_monitor(1000, 200), make_history([0.5, 0.49, 0.5, 0.48], training=0.95))
    assert "it memorizes training images only; check the labels" in warning
    assert "--learning-rate" not in warning


def test_without_a_validation_split_the_training_accuracy_counts():
    history = [Epoch(number, RATE, 1.0, 0.5, None, None, 1.0) for number in range(1, 5)]
    _, warning = first_warning(make_monitor(40, 0), history)
    assert warning.startswith("the training accuracy stays at chance level (50.0%): the network learns nothing")
    assert first_warning(make_monitor(40, 0), [Epoch(1, RATE, 1.0, 0.9, None, None, 1.0)] * 4) is None


def test_training_that_diverges_ends_with_one_line_and_the_existing_model_stays(command, tmp_path):
    assert command("clf-train", "--model", "tiny-convnet", "--epochs", 0.1).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "artifacts").iterdir() if path.is_file()}
    done = command("clf-train", "--overwrite", "--model", "plain-conv3", "--learning-rate", 1e9, "--epochs", 2)
    assert done.code == 3
    assert "RuntimeWarning" not in done.err
    assert done.err.splitlines()[-1] == (
        "clf-train: the training diverged in epoch 1 (loss nan, weights NaN or infinite); start over with --overwrite "
        "and a lower --learning-rate (now 1e+09); no model was written"
    )
    after = {path.name: path.read_bytes() for path in (tmp_path / "artifacts").iterdir() if path.is_file()}
    assert after == before


def test_a_collapse_is_the_last_message_and_stands_in_the_report(command, tmp_path):
    for label in "ab":
        (tmp_path / "same" / label).mkdir(parents=True)
        for number in range(30):
            Image.new("L", (8, 8), 100).save(tmp_path / "same" / label / f"{number}.png")
    done = command("clf-train", "--data", "same", "--model", "tiny-convnet", "--epochs", 4)
    assert done.code == 0, done.err
    assert "warning: the validation accuracy stays at chance level (" in done.err
    assert done.err.splitlines()[-1].startswith("warning: the validation accuracy stays at chance level (")
    page = (tmp_path / "artifacts/report.html").read_text()
    assert '<p class="warning" role="alert"><b>Warning:</b> the validation accuracy stays at chance level' in page
