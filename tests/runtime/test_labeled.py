"""Labeled images as people have them: class folders and manifests."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from clf_runtime.errors import DataError, MachineError, UsageError
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
    images = find_labeled_images(
        touch(tmp_path, "cat/1.jpg", "cat/deep/2.PNG", "dog/3.webp", "dog/notes.txt", "dog/._4.jpg")
    )
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
    columns = Columns(group_by=r"\d\.|other")
    assert find_labeled_images(tmp_path, columns).groups == ("1.", "2.", "other", "1.")
    assert not find_labeled_images(tmp_path, columns).warnings
    assert Columns(**columns.to_dict()) == columns
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


def test_links_to_images_and_folders_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "elsewhere", "cats/1.jpg", "more/2.jpg", "3.jpg")
    touch(tmp_path / "data", "dog/9.jpg", "dog/inside/8.jpg", ".trash/9.jpg", "dog/.trash/9.jpg")
    data = tmp_path / "data"
    (data / "cat").symlink_to(tmp_path / "elsewhere/cats")
    (data / "dog/7.jpg").symlink_to(tmp_path / "elsewhere/3.jpg")
    (data / "dog/more").symlink_to(tmp_path / "elsewhere/more")
    (data / "dog/again").symlink_to(data / "dog/inside")  # the images count once, by the name that is no link
    (data / "dog/loop").symlink_to(data / "dog")
    (data / "dog/inside/up").symlink_to(data)
    (data / "everything").symlink_to(data)  # no class of its own
    (data / "dog/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for circle in ("horse", "dog/circle", "dog/circle.jpg"):  # each leads to itself
        (data / circle).symlink_to(data / circle)
    images = find_labeled_images(data)
    assert images.names == ("cat/1.jpg", "dog/7.jpg", "dog/9.jpg", "dog/inside/8.jpg", "dog/more/2.jpg")
    assert images.warnings == (f"4 links lead nowhere and are left out (the first is {data}/dog/circle)",)


@pytest.mark.parametrize("data", ["data", "data.tar", "data.jsonl"])
def test_a_class_whose_name_is_not_utf_8_is_an_error(tmp_path, data):
    touch(tmp_path / "data", "a/1.jpg", os.fsdecode(b"b\xff/2.jpg"))
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(tmp_path / "data", "data")
    (tmp_path / "data.jsonl").write_text('{"path": "data/a/1.jpg", "label": "b\\udcff"}\n')
    with pytest.raises(DataError, match=r"the name of the class 'b\\udcff' is not UTF-8; rename it"):
        find_labeled_images(tmp_path / data)


def test_nested_folders_are_no_classes_and_the_message_says_so(tmp_path):
    touch(tmp_path, "animals/cats/1.jpg", "animals/dogs/2.jpg")
    with pytest.raises(DataError, match=r"one folder, animals, which has the folders cats, dogs; .* use .*/animals"):
        find_labeled_images(tmp_path)
    touch(tmp_path, "plants/rose/3.jpg", "plants/tulip/4.jpg")
    images = find_labeled_images(tmp_path)
    assert images.class_names == ("animals", "plants")
    assert (
        "the 4 folders in them (animals/cats, animals/dogs, plants/rose and 1 more) are not classes"
        in (images.warnings[0])
    )


def test_folders_beside_those_of_the_splits_are_ignored_with_a_warning(tmp_path):
    images = find_labeled_images(touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "extra/a/3.jpg"))
    assert len(images) == 2
    assert "only train are read; ignored: extra" in images.warnings[0]
    touch(tmp_path / "no", "val/a/1.jpg", "test/a/2.jpg")
    with pytest.raises(DataError, match="has test, val, but no train/"):
        find_labeled_images(tmp_path / "no")


def test_the_metadata_of_a_folder_names_its_images(tmp_path):
    touch(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/1.jpg,a\ntrain/2.jpg,b\ntest/3.jpg,a\n")
    images = find_labeled_images(tmp_path)
    assert images.splits == ("train", "train", "test")
    assert images.origins == {"train": "train", "test": "test"}
    (tmp_path / "metadata.csv").unlink()
    for split, rows in (("train", "1.jpg,a\n2.jpg,b\n"), ("test", "3.jpg,a\n")):
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n" + rows)
    assert find_labeled_images(tmp_path) == images
    assert find_labeled_images(tmp_path, Columns(label="label", group_by="file_name")).groups == (
        *("1.jpg", "2.jpg", "3.jpg"),
    )
    (tmp_path / "test/metadata.csv").unlink()
    coco = {"images": [{"id": 1, "file_name": "3.jpg"}], "annotations": [{"image_id": 1, "category_id": 1}]}
    (tmp_path / "test/_annotations.coco.json").write_text(json.dumps({**coco, "categories": [{"id": 1, "name": "a"}]}))
    assert find_labeled_images(tmp_path) == images


def test_metadata_without_labels_does_not_hide_class_folders(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na/1.jpg,an image\n")
    assert find_labeled_images(tmp_path).labels == ("a", "b")


def test_the_names_and_the_text_of_a_table_are_read_in_their_encoding(tmp_path):
    touch(tmp_path, "é.jpg", "b.jpg")
    rows = "path\tlabel\né.jpg\tEsel\nb.jpg\tHöhle\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "list.tsv").write_bytes(rows.encode(encoding))
        images = find_labeled_images(tmp_path / "list.tsv")
        assert pairs(images) == [("é.jpg", "Esel"), ("b.jpg", "Höhle")]
        assert not images.warnings
    (tmp_path / "list.tsv").write_bytes(rows.encode("cp1252"))
    images = find_labeled_images(tmp_path / "list.tsv")
    assert images.labels == ("Esel", "Höhle")
    assert "is not UTF-8 (byte 11); read as Windows-1252" in images.warnings[0]


def test_json_lines_and_parquet_are_tables(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    rows = [{"image": "a.jpg", "label": 1, "split": "train"}, {"label": 2.0, "image": "b.jpg", "split": "test"}]
    (tmp_path / "list.jsonl").write_text("\n\n".join(map(json.dumps, [{**row, "note": None} for row in rows])) + "\n")
    columns = {name: [row[name] for row in rows] for name in ("image", "label", "split")}
    parquet.write_table(pyarrow.table({**columns, "nested": [[1], [2]]}), tmp_path / "list.parquet")
    for name in ("list.jsonl", "list.parquet"):
        images = find_labeled_images(tmp_path / name)
        assert pairs(images) == [("a.jpg", "1"), ("b.jpg", "2")]
        assert images.splits == ("train", "test")


def test_without_pyarrow_a_parquet_file_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    touch(tmp_path, "list.parquet")
    with pytest.raises(MachineError, match=r'needs pyarrow.* pip install "clf-edge\[parquet\]"'):
        find_labeled_images(tmp_path / "list.parquet")


def test_repeated_rows_count_once(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text("path,label\na.jpg,x\n./a.jpg,x\nb.jpg,y\n")
    images = find_labeled_images(tmp_path / "list.csv")
    assert pairs(images) == [("a.jpg", "x"), ("b.jpg", "y")]
    assert "1 rows repeat an image and are left out (the first is a.jpg in row 3)" in images.warnings[0]


def test_annotations_in_a_folder_of_their_own_describe_the_images_beside_it(tmp_path):
    touch(tmp_path, "images/sub/a.jpg", "annotations/all.json")
    for image in ("sub/a.jpg", "images/sub/a.jpg"):
        (tmp_path / "annotations/all.json").write_text(json.dumps([{"image": image, "choice": ["x"]}]))
        assert pairs(find_labeled_images(tmp_path / "annotations/all.json")) == [("images/sub/a.jpg", "x")]


TABLE_ERRORS = {
    "": "its columns are missing; expected one of path, image",
    "a.jpg,cat\n": "has no header; expected the names of the columns in its first row",
    "path,color\na.jpg,red\n": "its columns are path, color; expected one of label, class",
    "path,label\n": "lists no images",
    "path,label\na.jpg,\n": "none of its 1 images has a label",
    "path,label\na.jpg,x\nb.jpg,\n": r"1 images have no label \(the first is 'b.jpg' in row 3\)",
    "path,label\na.jpg,x\n,y\n": "row 3 has no image; expected a path in the column 'path'",
    "path,label\na.jpg,x,y\n": "row 2 has 3 fields; expected 2",
    "path,label\na.jpg,x\na.jpg,y\n": "a.jpg has two labels, 'x' in row 2 and 'y' in row 3",
    "path,label\na.jpg,x\nno.jpg,y\nc.jpg,y\n": r"2 of 3 images do not exist in .* \(the first is 'no.jpg' in row 3",
    "path,label\n../a.jpg,x\n": "row 2: '../a.jpg' leads outside",
    "path,label,split\na.jpg,x,train\nb.jpg,y,holdout\n": r"row 3 has the split 'holdout'; .* \(found 'train', 'hold",
    "path,label,split\na.jpg,x,\n": r"row 2 has the split ''; .* \(found none\)",
    "path,label,split\na.jpg,x,train\na.jpg,x,test\n": "a.jpg has two splits, 'train' in row 2 and 'test' in row 3",
    'path,label\n"a.jpg,x\n': "row 2 is not valid CSV",
}


@pytest.mark.parametrize("text", TABLE_ERRORS, ids=range(len(TABLE_ERRORS)))
def test_the_error_for_an_unusable_table_names_the_row(tmp_path, text):
    touch(tmp_path, "data/a.jpg", "data/b.jpg", "a.jpg")
    (tmp_path / "data/list.csv").write_text(text)
    with pytest.raises(DataError, match=TABLE_ERRORS[text]) as raised:
        find_labeled_images(tmp_path / "data/list.csv")
    assert "\n" not in str(raised.value)


OTHER_ERRORS = {
    "a.csv": (b"\xff\xfea\xd8", "starts as utf-16 but is not"),
    "b.jsonl": (b'{"image"', r"row 1: is not valid JSON"),
    "c.jsonl": (b"[1]", "row 1 is no object"),
    "d.jsonl": (b"", "its columns are missing"),
    "p.jsonl": (b'{"image": "a\\u0000.jpg", "label": "x"}', "1 of 1 images do not exist"),
    "e.parquet": (b"PAR1 no", "is not a valid Parquet file"),
    "f.json": (b"[" * 100_000, "is not valid JSON"),
    "g.json": (b"\xff", "is not UTF-8"),
    "h.json": (b"{}", "is neither COCO"),
    "i.json": (b"[]", "is neither COCO"),
    "j.json": (b'[{"id": 1}]', "is not a complete COCO or Label Studio export .*no image in task 1"),
    "k.json": (b'[{"data": 1, "annotations": 2}]', "is not a complete COCO"),
    "l.json": (
        b'{"images": [], "annotations": [{"category_id": 1}], "categories": []}',
        "the category 1, which is not listed",
    ),
    "m.json": (b'{"images": [], "annotations": [], "categories": []}', "lists no images"),
    "n.json": (b'[{"image": "a.jpg", "choice": {"choices": ["x", "y"]}}]', "a.jpg has two labels, 'x' in task 1"),
    "o.txt": (b"", "is not a folder, an archive .* or a manifest"),
}


@pytest.mark.parametrize("name", OTHER_ERRORS)
def test_the_error_for_an_unusable_manifest_says_why(tmp_path, name):
    content, message = OTHER_ERRORS[name]
    touch(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        find_labeled_images(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_column_that_does_not_exist_is_an_error(tmp_path):
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.csv").write_text("path,label\na.jpg,x\n")
    with pytest.raises(DataError, match="has no column 'kind' for --label-column; its columns are path, label"):
        find_labeled_images(tmp_path / "list.csv", Columns(label="kind"))


def test_folders_without_classes_or_images_are_errors(tmp_path):
    with pytest.raises(DataError, match="is empty; expected a folder of images for each class"):
        find_labeled_images(tmp_path)
    with pytest.raises(DataError, match="has images, but no class folders"):
        find_labeled_images(touch(tmp_path, "a.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: has no images; add some"):
        find_labeled_images(tmp_path)
    with pytest.raises(DataError, match="no such folder, and no data set of this name"):
        find_labeled_images(tmp_path / "missing")
    for name in ("train", "test"):
        touch(tmp_path / "parts", f"{name}/1.jpg")
    (tmp_path / "parts/train/metadata.csv").write_text("file_name,label\n1.jpg,a\n")
    with pytest.raises(DataError, match=r"test: has no metadata.csv, unlike the other splits"):
        find_labeled_images(tmp_path / "parts")
