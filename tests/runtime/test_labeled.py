"""Labeled images as people have them: class folders and manifests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clf_runtime.errors import DataError, UsageError
from clf_runtime.labeled import Columns, LabeledImages, find_labeled_images


def touch(root: Path, *names: str) -> Path:
    """Write a file for each name; which images are decodable does not matter here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")
    return root


def pairs(images: LabeledImages) -> list[tuple[str, str]]:
    return list(zip(images.names, images.labels, strict=True))


def test_each_folder_is_a_class_with_its_images_at_any_depth(tmp_path):
    images = find_labeled_images(touch(tmp_path, "cat/1.jpg", "cat/deep/2.PNG", "dog/3.webp", "dog/notes.txt"))
    assert pairs(images) == [("cat/1.jpg", "cat"), ("cat/deep/2.PNG", "cat"), ("dog/3.webp", "dog")]
    assert images.class_names == ("cat", "dog")
    assert images.splits == (None, None, None)
    assert images.file(0) == str(tmp_path / "cat/1.jpg")
    assert len(images) == 3


def test_the_folders_of_the_splits_are_found_by_their_usual_names(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "valid/a/3.jpg", "test/b/4.jpg")
    images = find_labeled_images(tmp_path)
    assert images.splits == ("train", "train", "validation", "test")
    assert images.origins == {"train": "train", "validation": "valid", "test": "test"}


def test_a_csv_manifest_names_images_classes_and_splits(tmp_path):
    touch(tmp_path, "a.jpg", "in/b.jpg")
    manifest = tmp_path / "list.csv"
    manifest.write_text("id;Filename;CLASS;subset\n1;a.jpg;cat;train\n2;./in/b.jpg; dog ;VAL\n\n")
    images = find_labeled_images(manifest)
    assert images.root == tmp_path
    assert pairs(images) == [("a.jpg", "cat"), ("in/b.jpg", "dog")]
    assert images.splits == ("train", "validation")
    assert images.origins == {"train": "train", "validation": "VAL"}
    chosen = find_labeled_images(manifest, Columns(image="Filename", label="id", split="subset"))
    assert chosen.labels == ("1", "2")


def test_images_are_grouped_by_a_column_or_by_their_names(tmp_path):
    touch(tmp_path, "cat/s1_1.jpg", "cat/s1_2.jpg", "dog/s2_1.jpg", "dog/other.jpg")
    images = find_labeled_images(tmp_path, Columns(group_by=r"(s\d+)_"))
    assert images.groups == ("s1", "s1", "dog/other.jpg", "s2")
    assert "not found in the names of 1 images" in images.warnings[0]
    (tmp_path / "list.csv").write_text("path,label,camera\ncat/s1_1.jpg,cat,x\ndog/s2_1.jpg,dog,\n")
    assert find_labeled_images(tmp_path / "list.csv", Columns(group_by="camera")).groups == ("x", "dog/s2_1.jpg")
    with pytest.raises(UsageError, match=r"neither a column nor a regular expression \("):
        find_labeled_images(tmp_path, Columns(group_by="("))
    with pytest.raises(UsageError, match="neither a column nor found in the name of any image"):
        find_labeled_images(tmp_path, Columns(group_by="camera"))


def test_columns_of_class_folders_are_an_error(tmp_path):
    with pytest.raises(UsageError, match="--label-column kind: applies to a table"):
        find_labeled_images(touch(tmp_path, "a/1.jpg"), Columns(label="kind"))


def test_a_manifest_leads_nowhere_outside_its_folder(tmp_path):
    touch(tmp_path, "secret.jpg", "data/a.jpg")
    for path in ("../secret.jpg", str(tmp_path / "secret.jpg"), "x/../../secret.jpg", "C:\\secret.jpg"):
        (tmp_path / "data/list.csv").write_text(f"path,label\n{path},cat\n")
        with pytest.raises(DataError, match="leads outside"):
            find_labeled_images(tmp_path / "data/list.csv")
    (tmp_path / "data/list.csv").write_text(f"path,label\n{tmp_path / 'data/a.jpg'},cat\n")
    assert find_labeled_images(tmp_path / "data/list.csv").names == ("a.jpg",)


def test_coco_and_label_studio_exports_are_manifests(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    coco = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}, {"id": 9, "file_name": "c.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 1}, {"image_id": 8, "category_id": 2}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    tasks = [
        {"data": {"image": "/data/upload/3/a.jpg"}, "annotations": [choice("cat")]},
        {"data": {"image": "/data/local-files/?d=images/b.jpg"}, "annotations": [choice("dog"), choice("dog")]},
        {"data": {"image": "c.jpg"}, "annotations": [{**choice("cat"), "was_cancelled": True}]},
    ]
    minimal = [
        {"image": "a.jpg", "choice": "cat"},
        {"image": "b.jpg", "choice": {"choices": ["dog"]}},
        {"image": "c.jpg"},
    ]
    for content in (coco, tasks, minimal):
        (tmp_path / "export.json").write_text(json.dumps(content))
        images = find_labeled_images(tmp_path / "export.json")
        assert pairs(images) == [("images/a.jpg", "cat"), ("images/b.jpg", "dog")]
        assert "1 images have no label and are left out (the first is 'c.jpg' in " in images.warnings[0]


def choice(label: str) -> dict[str, object]:
    return {"result": [{"type": "choices", "value": {"choices": [label]}}], "was_cancelled": False}
