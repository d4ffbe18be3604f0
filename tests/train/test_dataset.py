"""Images keep their order and classes, and a split is the same on every machine."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision
from odd_images import drawing
from PIL import Image

from clf_runtime.errors import DataError, MachineError
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import Preprocess
from clf_train.data import builtin, folder
from clf_train.data.dataset import ArrayImageSet, FileImageSet, ImageRoot, interleave_classes, split_off
from clf_train.registry import DATASETS, find_dataset_row

GRAY = Preprocess("L", 8, 8, "crop", 1.0, "bilinear", (255,))
MNIST_INPUT = Preprocess("L", 28, 28, "crop", 1.0, "bilinear", (255,))


def load_digits(seed: int = 0, share: float = 0.2):
    return builtin.load(find_dataset_row("digits"), None, share, seed)


def draw_classes(root, classes: dict[str, int], size: int = 20):
    for label, count in classes.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            drawing(size + number, size).save(root / label / f"{number:03d}.png")
    return root


def test_the_splits_are_disjoint_and_complete():
    dataset = load_digits()
    names = [set(split.names) for split in dataset.splits]
    assert [len(split) for split in names] == [1295, 143, 359]
    assert len(set.union(*names)) == 1797


def test_every_class_has_the_same_share_in_the_test_split():
    dataset = load_digits(share=0.3)
    counts = np.bincount(np.concatenate([split.targets for split in dataset.splits]))
    np.testing.assert_allclose(np.bincount(dataset.test.targets) / counts, 0.3, atol=0.01)


def test_only_the_seed_decides_the_split():
    code = (
        "import hashlib; from clf_train.data import builtin; from clf_train.registry import find_dataset_row; "
        "print(builtin.load(find_dataset_row('digits'), None, 0.2, 0).test.fingerprint())"
    )
    env = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    elsewhere = subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip()
    # A constant, since it must not change with a release of numpy or scikit-learn either.
    assert load_digits().test.fingerprint() == elsewhere
    assert elsewhere == "5f780a5b24ddf1b182802cb5a89a0707fd4805ed0d56fcf5d2c4416e01f427e5"
    assert load_digits(seed=1).test.fingerprint() != elsewhere


def test_a_new_image_moves_few_others_to_another_split():
    names = [f"{number}.png" for number in range(1000)]
    targets = np.zeros(1001, np.int64)
    pixels = np.zeros((1001, 1, 1, 1), np.uint8)
    before = split_off(ArrayImageSet(pixels[:1000], names, targets[:1000]), 0.2, 0, "test", smallest=2)[1]
    after = split_off(ArrayImageSet(pixels, [*names, "new.png"], targets), 0.2, 0, "test", smallest=2)[1]
    assert len(set(before.names) ^ set(after.names)) <= 2


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (3, 1), (10, 2), (11, 2)])
def test_a_small_class_has_at_least_one_image_on_either_side_of_a_split(count, expected):
    images = ArrayImageSet(
        np.zeros((count, 1, 1, 1), np.uint8), [str(n) for n in range(count)], np.zeros(count, np.int64)
    )
    rest, test = split_off(images, 0.2, 0, "test", smallest=2)
    assert (len(rest), len(test)) == (count - expected, expected)


def test_interleaving_takes_one_class_after_the_other():
    targets = np.array([0, 0, 0, 1, 1, 2])
    assert interleave_classes(targets, 4) == [0, 3, 5, 1]
    assert interleave_classes(targets, 99) == [0, 3, 5, 1, 4, 2]


def test_an_encoded_image_decodes_to_the_same_pixels():
    test = load_digits().test
    decoded = test.decode(GRAY)
    for index in range(0, len(test), 40):
        np.testing.assert_array_equal(pixels_from_image(test.encode(index), GRAY), decoded[index])


def test_arrays_of_another_size_are_preprocessed_by_the_runtime():
    test = load_digits().test
    larger = Preprocess("RGB", 16, 12, "squash", 1.0, "bicubic", (0, 0, 0))
    assert test.subset([0, 1]).decode(larger).shape == (2, 16, 12, 3)


def test_mnist_is_loaded_from_torchvisions_layout(test_data):
    dataset = builtin.load(find_dataset_row("mnist"), test_data / "mnist", 0.2, 0)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (58_000, 2_000, 10_000)
    assert dataset.test.decode(Preprocess("L", 28, 28, "crop", 1.0, "bilinear", (0,))).shape == (10_000, 28, 28, 1)
    assert np.bincount(dataset.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_fashion_mnist_is_loaded_from_torchvisions_layout(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        sizes = b"".join(size.to_bytes(4, "big") for size in pixels.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pixels.tobytes())
        labels = bytes(index % 10 for index in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + count.to_bytes(4, "big") + labels)
    dataset = builtin.load(find_dataset_row("fashion-mnist"), tmp_path, 0.2, 0)
    assert dataset.labels[:2] == ("T-shirt/top", "Trouser")
    np.testing.assert_array_equal(dataset.test.decode(MNIST_INPUT)[..., 0], pixels)
    assert dataset.test.targets.tolist() == [index % 10 for index in range(20)]


def test_cifar10_is_loaded_from_torchvisions_layout(tmp_path, monkeypatch):
    # Batches in the layout of the archive, but with random pixels, so the checksums cannot match.
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *arguments: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        batch = {"data": pixels.reshape(20, -1), "labels": [index % 10 for index in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    dataset = builtin.load(find_dataset_row("cifar10"), tmp_path, 0.2, 0)
    assert list(dataset.labels) == names
    assert len(dataset.train) + len(dataset.validation) == 100
    preprocess = Preprocess("RGB", 32, 32, "crop", 1.0, "bilinear", (255, 255, 255))
    np.testing.assert_array_equal(dataset.test.decode(preprocess), pixels.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("name", [row.name for row in DATASETS if row.source == "download"])
def test_the_error_for_a_failed_download_says_what_to_do(name, tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(MachineError, match=rf"{name} is missing and could not be downloaded .* --data-root"):
        builtin.load(find_dataset_row(name), tmp_path, 0.2, 0)


def test_a_folder_of_class_folders_is_split_by_the_seed(tmp_path):
    dataset = folder.load(draw_classes(tmp_path, {"b": 20, "a": 10, "Z": 5}), 0.2, 0)
    assert dataset.labels == ("Z", "a", "b")
    assert np.bincount(dataset.test.targets).tolist() == [1, 2, 4]
    assert all(
        name.startswith(dataset.labels[target])
        for name, target in zip(dataset.test.names, dataset.test.targets, strict=False)
    )


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "testing"])
def test_a_test_folder_is_the_test_split(tmp_path, name):
    draw_classes(tmp_path / "train", {"a": 12, "b": 9})
    draw_classes(tmp_path / name, {"a": 3, "b": 2})
    dataset = folder.load(tmp_path, 0.2, 0)
    assert dataset.test_name == name
    assert len(dataset.test) == 5
    assert len(dataset.train) + len(dataset.validation) == 21


def test_three_folders_are_the_three_splits(tmp_path):
    for name, count in (("train", 6), ("val", 3), ("test", 2)):
        draw_classes(tmp_path / name, {"a": count, "b": count})
    dataset = folder.load(tmp_path, 0.2, 0)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (12, 6, 4)


def test_a_train_folder_alone_is_split_by_the_seed(tmp_path):
    draw_classes(tmp_path / "train", {"a": 10, "b": 10})
    assert len(folder.load(tmp_path, 0.2, 0).test) == 4


def test_hidden_files_and_other_files_are_ignored(tmp_path):
    draw_classes(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a" / "._000.png").write_bytes(b"finder")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"windows")
    (tmp_path / ".git").mkdir()
    dataset = folder.load(tmp_path, 0.2, 0)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 8


def test_the_fingerprint_depends_on_the_content(tmp_path):
    dataset = folder.load(draw_classes(tmp_path, {"a": 10, "b": 10}), 0.2, 0)
    before = dataset.test.fingerprint()
    assert folder.load(tmp_path, 0.2, 0).test.fingerprint() == before
    Image.new("RGB", (20, 20)).save(dataset.test.path(0))
    assert folder.load(tmp_path, 0.2, 0).test.fingerprint() != before


def test_duplicates_between_the_test_and_the_training_split_are_found(tmp_path):
    draw_classes(tmp_path / "train", {"a": 5, "b": 5})
    draw_classes(tmp_path / "test", {"a": 3, "b": 3}, size=40)
    assert folder.load(tmp_path, 0.2, 0).find_duplicates() == []
    dataset = folder.load(tmp_path, 0.2, 0)
    (tmp_path / "test/b/again.png").write_bytes(Path(dataset.train.path(0)).read_bytes())
    assert folder.load(tmp_path, 0.2, 0).find_duplicates() == ["test/b/again.png"]
    assert load_digits().find_duplicates() == []


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "is empty; expected a folder of images for each class"),
        ({"only": 5}, "has one class, 'only'; expected two or more"),
        ({"a": 5, "b": 0}, "b: has no images"),
        ({"a": 5, "b": 1}, "class 'b' has 1 image; expected at least 2"),
        ({"cat": 3, "Cat": 3}, "the classes Cat and cat differ only in case"),
    ],
)
def test_the_error_for_an_unusable_folder_says_why(tmp_path, classes, message):
    with pytest.raises(DataError) as raised:
        folder.load(draw_classes(tmp_path / "data", classes) if classes else tmp_path, 0.2, 0)
    assert message in str(raised.value)


def test_images_without_class_folders_are_an_error(tmp_path):
    drawing(9, 9).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has images, but no class folders"):
        folder.load(tmp_path, 0.2, 0)


def test_a_file_or_a_missing_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: is not a folder, an archive"):
        folder.load(tmp_path / "file", 0.2, 0)
    with pytest.raises(DataError, match="no such folder, and no data set of this name"):
        folder.load(tmp_path / "minst", 0.2, 0)


def test_the_error_for_different_classes_in_train_and_test_names_them(tmp_path):
    draw_classes(tmp_path / "train", {"a": 3, "b": 3})
    draw_classes(tmp_path / "test", {"a": 3, "c": 3})
    with pytest.raises(DataError, match="it has no 'b', has 'c'"):
        folder.load(tmp_path, 0.2, 0)


def test_the_error_for_unreadable_images_counts_all_and_names_the_first(tmp_path):
    draw_classes(tmp_path, {"a": 8, "b": 8})
    for number in range(7):
        (tmp_path / "a" / f"{number:03d}.png").write_text("not an image")
    images = folder.load(tmp_path, 0.2, 0).train
    with pytest.raises(
        DataError, match=r"4 of 10 images cannot be read: .*a/00\d.png: not-an-image.*; and 1 more; repair"
    ):
        images.decode(GRAY)


@pytest.mark.parametrize(("mode", "color"), [("L", "L"), ("RGB", "RGB"), ("1", "L"), ("P", "RGB")])
def test_the_survey_finds_the_median_size_and_the_color(tmp_path, mode, color):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(5):
            drawing(100, 30 + 10 * number).convert(mode).save(tmp_path / label / f"{number}.png")
    names = [f"{label}/{number}.png" for label in "ab" for number in range(5)]
    images = FileImageSet(ImageRoot(tmp_path), names, np.zeros(10, np.int64))
    assert folder.survey_images(images) == folder.ImageProperties(50, color)
