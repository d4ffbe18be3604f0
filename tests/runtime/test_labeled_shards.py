"""Images in WebDataset tar shards and in Parquet files are found with their labels, and read in place."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from clf_runtime.errors import DataError, ImageError, MachineError, UsageError
from clf_runtime.evaluation.selection import select_images
from clf_runtime.labeled import Columns, LabeledImages, find_labeled_images, image_table, shards
from clf_runtime.labeled.members import Member
from clf_runtime.labeled.parquet import read_images

Files = Mapping[str, bytes]


def pack(path: Path, files: Files, format: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(*labels: str, start: int = 0) -> dict[str, bytes]:
    """Samples with an image and a label each."""
    files = {}
    for number, label in enumerate(labels, start):
        files[f"{number:04}.jpg"] = f"image {number}".encode()
        files[f"{number:04}.cls"] = label.encode()
    return files


def read_member(images: LabeledImages, index: int) -> bytes:
    member = images.file(index)
    assert isinstance(member, Member)
    return member.read()


def describe(images: LabeledImages) -> list[tuple[str, str, bytes]]:
    """The name, the label and the bytes of each image."""
    contents = [read_member(images, index) for index in range(len(images))]
    return list(zip(images.names, images.labels, contents, strict=True))


def write_table(path: Path, columns: Mapping[str, object], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def error_of(source: Path, columns: Columns = Columns()) -> str:  # noqa: B008 (frozen)
    with pytest.raises(DataError) as raised:
        find_labeled_images(source, columns)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_the_samples_of_a_folder_of_tar_shards_have_the_labels_beside_their_images(tmp_path):
    pack(tmp_path / "b.tar", {"x/7.png": b"seven", "x/7.json": b'{"Label": "dog", "width": 3}', "x/7.txt": b"a dog"})
    pack(tmp_path / "a.tar", {"__meta.json": b"{}", **samples("cat", " dog\n")})
    images = find_labeled_images(tmp_path)
    assert describe(images) == [
        ("a.tar/0000.jpg", "cat", b"image 0"),
        ("a.tar/0001.jpg", "dog", b"image 1"),
        ("b.tar/x/7.png", "dog", b"seven"),
    ]
    assert images.splits == (None, None, None)
    assert str(images.file(2)) == f"{tmp_path / 'b.tar'}/x/7.png"


def test_one_shard_is_told_from_an_archive_of_class_folders(tmp_path):
    assert describe(find_labeled_images(pack(tmp_path / "s.tar", samples("a", "b"))))[1][1] == "b"
    top = {"1.jpg": b"1", "1.json": b'{"label": 3}'}
    assert find_labeled_images(pack(tmp_path / "j.tar", top)).labels == ("3",)
    folders = {"cat/1.jpg": b"1", "cat/1.json": b"{}", "dog/1.jpg": b"2"}
    assert find_labeled_images(pack(tmp_path / "c.tar", folders)).labels == ("cat", "dog")
    many = {f"cat/{number}.jpg": b"1" for number in range(70)} | {"dog/1.jpg": b"1", "dog/1.cls": b"x"}
    assert set(find_labeled_images(pack(tmp_path / "m.tar", many)).labels) == {"cat", "dog"}


def test_patterns_name_shards_as_in_a_shell(tmp_path):
    for number in range(12):
        pack(tmp_path / f"s/part-{number:03}.tar", samples("a", "b", start=number))
    for pattern, count in (
        ("s/part-{000..002}.tar", 3),
        ("s/part-0{00,11}.tar", 2),
        ("s/part-0{11..09}.tar", 3),
        ("{s,s}/part-{001..1}.tar", 1),
        ("s/part-01*.tar", 2),
        ("*/part-00[1-3].tar", 3),
    ):
        images = find_labeled_images(tmp_path / pattern)
        assert len(images) == 2 * count, pattern
        prefix = "s/" if pattern.startswith(("{", "*")) else ""
        assert all(name.startswith(f"{prefix}part-0") for name in images.names)
    assert "part-012.tar: no such shard" in error_of(tmp_path / "s/part-{000..012}.tar")
    assert "part-x*.tar: no such shard" in error_of(tmp_path / "s/part-x*.tar")
    assert "no such shard" in error_of(tmp_path / "s/part-{000}.tar")
    assert "stands for" in error_of(tmp_path / "{0..99999999999}{0..9}.tar")
    (tmp_path / "s/readme.txt").touch()
    assert "readme.txt: is no shard; expected .tar or .parquet" in error_of(tmp_path / "s/*")


def test_a_pattern_may_be_relative(tmp_path, monkeypatch):
    pack(tmp_path / "0.tar", samples("a", "b"))
    monkeypatch.chdir(tmp_path)
    assert find_labeled_images(Path("{0..0}.tar")).names == ("0.tar/0000.jpg", "0.tar/0001.jpg")


def test_the_splits_are_those_of_the_folders_or_of_the_first_word_of_the_names(tmp_path):
    pack(tmp_path / "f/train/0.tar", samples("a", "b"))
    pack(tmp_path / "f/val/0.tar", samples("b"))
    images = find_labeled_images(tmp_path / "f")
    assert images.names == ("train/0.tar/0000.jpg", "train/0.tar/0001.jpg", "val/0.tar/0000.jpg")
    assert images.splits == ("train", "train", "validation")
    assert images.origins == {"train": "train", "validation": "val"}
    for name in ("train-0.tar", "testing_1.tar", "extra-0.tar", "0.tar"):
        pack(tmp_path / "n" / name, samples("a"))
    images = find_labeled_images(tmp_path / "n")
    assert images.splits == ("test", "train")
    assert images.origins == {"test": "testing", "train": "train"}
    assert "ignored: 0.tar, extra-0.tar" in images.warnings[0]
    for number in range(5):
        pack(tmp_path / f"n/{number}.tar", samples("a"))
    assert "ignored: 0.tar, 1.tar, 2.tar and 3 more" in find_labeled_images(tmp_path / "n").warnings[0]


def test_classes_txt_names_the_classes_by_index(tmp_path):
    pack(tmp_path / "0.tar", samples("0", "2", "cat"))
    (tmp_path / "classes.txt").write_text("\ufeffcat\ndog\n\nant\n", "utf-8")
    assert find_labeled_images(tmp_path).labels == ("cat", "ant", "cat")
    pack(tmp_path / "1.tar", samples("cat", "3"))
    assert "1.tar: 0001.jpg has the label '3'; expected one of the 3 classes" in error_of(tmp_path)
    pack(tmp_path / "1.tar", samples("-1"))
    assert "has the label '-1'" in error_of(tmp_path)


def test_columns_choose_among_the_files_of_a_sample(tmp_path):
    files = {"1.jpg": b"photo", "1.seg.png": b"mask", "1.kind": b"a", "1.json": b'{"label": "b", "breed": "c"}'}
    path = pack(
        tmp_path / "0.tar", {"0.jpg": b"0", "0.cls": b"z", "0.kind": b"a", "0.json": b'{"breed": "c"}', **files}
    )
    assert find_labeled_images(path).labels == ("z", "b")
    assert find_labeled_images(path, Columns(label="kind")).labels == ("a", "a")
    assert find_labeled_images(path, Columns(label="breed")).labels == ("c", "c")
    assert "the sample 0 has no label; expected 0.cls2, or 'cls2' in 0.json" in error_of(path, Columns(label="cls2"))
    assert "the sample 0 has a label but no image; expected 0.seg.png" in error_of(path, Columns(image="seg.png"))
    with pytest.raises(UsageError, match=r"--split-column s: applies to a table"):
        find_labeled_images(path, Columns(split="s"))
    both = pack(tmp_path / "both.tar", {"1.jpg": b"j", "1.png": b"p", "1.cls": b"a"})
    assert "the sample 1 has 1.jpg and 1.png; choose one with --image-column jpg" in error_of(both)
    assert describe(find_labeled_images(both, Columns(image="PNG"))) == [("both.tar/1.png", "a", b"p")]
    assert find_labeled_images(both, Columns(group_by=r"(\d)\.png", image="png")).groups == ("1",)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"0.cls": b"a"}, "the sample 0 has a label but no image; expected 0.jpg, .png or the like"),
        ({"0.heic": b"a", "0.json": b'{"label": 1}'}, "the sample 0 has a label but no image"),
        ({"0.jpg": b"a"}, "the sample 0 has no label; expected 0.cls, or 0.json with a label"),
        ({"0.jpg": b"a", "0.cls": b" "}, "the sample 0 has no label"),
        ({"0.jpg": b"a", "0.json": b'{"label": null}'}, "the sample 0 has no label"),
        ({"0.jpg": b"a", "0.json": b'{"caption": "x"}'}, "the sample 0 has no label"),
        ({"0.jpg": b"a", "0.json": b"[1]"}, "0.json is no object"),
        ({"0.jpg": b"a", "0.json": b"{"}, "0.json: is not valid JSON"),
        ({"0.jpg": b"a", "0.cls": b"\xff"}, "0.cls is not UTF-8"),
        ({"0.jpg": b"a", "0.cls": b"x" * (1 << 20) + b"x"}, "0.cls has 1,048,577 bytes; expected a label"),
        ({"../0.jpg": b"a", "0.cls": b"a"}, "'../0.jpg' leads outside"),
        ({"/0.jpg": b"a", "0.cls": b"a"}, "'/0.jpg' leads outside"),
        ({".0.jpg": b"a"}, "has no images"),
        ({}, "has no images"),
    ],
)
def test_a_sample_that_cannot_be_used_is_one_line(tmp_path, files, expected):
    pack(tmp_path / "s/0.tar", files)
    assert expected in error_of(tmp_path / "s")


def test_odd_members_are_found_or_rejected(tmp_path):
    long = "d" * 90 + "/" + "n" * 120
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = pack(tmp_path / "long.tar", {f"{long}.jpg": b"1", f"{long}.cls": "ä".encode()}, format)
        assert describe(find_labeled_images(path)) == [(f"long.tar/{long}.jpg", "ä", b"1")]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        path = pack(tmp_path / "odd.tar", samples("a"))
        with tarfile.open(path, "a") as archive:
            archive.addfile(tarfile.TarInfo("folder"))
            info = tarfile.TarInfo("1.jpg")
            info.type, info.linkname = kind, "0000.jpg"
            archive.addfile(info)
        assert "1.jpg is a link or no file; pack the file itself" in error_of(path)
    path = pack(tmp_path / "twice.tar", samples("a"))
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("0000.JPG"))
    assert "0000.JPG is in it twice" in error_of(path)
    sparse = tarfile.TarInfo("1.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(pack(tmp_path / "sparse.tar", samples("a")), "a") as archive:
        archive.addfile(sparse)
    assert "1.jpg is stored as a sparse file" in error_of(tmp_path / "sparse.tar")


def test_a_damaged_shard_is_one_line(tmp_path):
    whole = pack(tmp_path / "s/0.tar", samples("a", "b")).read_bytes()
    for content in (b"", whole[:700], whole[:1536] + b"?" * 1024, whole[:2048], whole[:1500], b"\x1f\x8b" + whole):
        (tmp_path / "s/0.tar").write_bytes(content)
        for source in (tmp_path / "s", tmp_path / "s/0.tar"):
            assert "0.tar: the archive is damaged" in error_of(source)


@given(data=st.data())
def test_no_content_of_a_shard_is_a_traceback(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    extensions = st.sampled_from(["jpg", "cls", "json", "seg.png", "txt", ""])
    keys = st.text("ab./_0", max_size=4)
    contents = st.binary(max_size=6) | st.sampled_from([b"0", b'{"label": 1}', b'{"label": {}}', b"[]"])
    files = data.draw(st.dictionaries(st.builds("{}.{}".format, keys, extensions), contents, max_size=6))
    path = pack(folder / "0.tar", files)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(DataError):
        images = find_labeled_images(folder)
        assert len(images) == len(set(images.names)) > 0
        for index in range(len(images)):
            with contextlib.suppress(ImageError):
                read_member(images, index)


def test_a_shard_that_changed_is_noticed_when_an_image_is_read(tmp_path):
    path = pack(tmp_path / "0.tar", samples("a", "b"))
    images = find_labeled_images(path)
    assert images.shards is not None
    assert images.shards.index.read_block([0, 1]) == [b"image 0", b"image 1"]
    os.utime(path, (1, 1))
    with pytest.raises(ImageError, match="changed after it was indexed"):
        read_member(images, 0)
    with pytest.raises(ImageError, match="changed after it was indexed"):
        images.shards.index.read_block([0, 1])


def test_compressed_shards_and_mixed_folders_are_one_line(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z/0.tar.gz").write_bytes(b"x")
    assert "0.tar.gz: is compressed as a whole" in error_of(tmp_path / "z")
    assert "0.tar.gz: is compressed as a whole" in error_of(tmp_path / "z/*")
    pack(tmp_path / "p/0.tar", samples("a"))
    write_table(tmp_path / "p/0.parquet", {"image": [b"1"], "label": ["a"]})
    assert "has .parquet and .tar files; expected shards of one kind" in error_of(tmp_path / "p")
    pack(tmp_path / "i/0.tar", samples("a"))
    (tmp_path / "i/1.jpg").touch()
    assert "has shards (0.tar) and images (1.jpg)" in error_of(tmp_path / "i")


def test_class_folders_are_read_although_shards_are_beside_them(tmp_path):
    for name in ("cat/1.jpg", "dog/1.jpg", "backup.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = find_labeled_images(tmp_path)
    assert images.labels == ("cat", "dog")
    assert images.warnings == (
        f"{tmp_path}: has class folders (cat), so 1 shards are ignored (the first is backup.tar)",
    )


FEATURES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


def write_like_datasets(path: Path, images: list[object], labels: list[int], **options: object) -> Path:
    """Write a Parquet file as the library datasets does."""
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", struct), ("label", pyarrow.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps(FEATURES)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"image": images, "label": labels}, schema=schema), path, **options)
    return path


def test_parquet_files_of_the_library_datasets_are_read(tmp_path):
    images = [{"bytes": b"%d" % number, "path": f"../d/{number}.png" if number else None} for number in range(5)]
    write_like_datasets(tmp_path / "train-00000-of-00001.parquet", images, [0, 1, 1, 0, 1], row_group_size=2)
    write_like_datasets(tmp_path / "test-00000-of-00001.parquet", images[:1], [1])
    found = find_labeled_images(tmp_path)
    train = "train-00000-of-00001.parquet"
    assert describe(found) == [
        ("test-00000-of-00001.parquet/000000", "dog", b"0"),
        (f"{train}/000000", "cat", b"0"),
        (f"{train}/000001/1.png", "dog", b"1"),
        (f"{train}/000002/2.png", "dog", b"2"),
        (f"{train}/000003/3.png", "cat", b"3"),
        (f"{train}/000004/4.png", "dog", b"4"),
    ]
    assert found.splits == ("test", *["train"] * 5)
    assert found.shards is not None
    assert found.shards.index.blocks.tolist() == [0, 1, 1, 2, 2, 3]
    assert found.shards.index.read_block([3, 4]) == [b"2", b"3"]


def test_columns_of_bytes_are_found_by_their_usual_names_or_the_options(tmp_path):
    columns = {
        "file_name": ["x/a.jpg", "b.jpg"],
        "Content": [b"1", b"2"],
        "thumb": pyarrow.array([b"3", b"4"], pyarrow.large_binary()),
        "class": [7.0, 8.0],
        "kind": pyarrow.array(["p", "q"]).dictionary_encode(),
        "split": ["train", "val"],
    }
    path = write_table(tmp_path / "t.parquet", columns)
    images = find_labeled_images(path)
    assert describe(images) == [("t.parquet/000000/a.jpg", "7", b"1"), ("t.parquet/000001/b.jpg", "8", b"2")]
    assert (images.splits, images.origins) == (("train", "validation"), {"train": "train", "validation": "val"})
    images = find_labeled_images(path, Columns(image="thumb", label="kind", group_by="class"))
    assert [(label, content) for _, label, content in describe(images)] == [("p", b"3"), ("q", b"4")]
    assert images.groups == ("7", "8")
    assert find_labeled_images(path, Columns(group_by=r"([ab])\.jpg")).groups == ("a", "b")
    del columns["file_name"], columns["Content"]
    assert describe(find_labeled_images(write_table(path, columns), Columns("thumb")))[0][0] == "t.parquet/000000"
    assert "row 2 has the split 'b'" in error_of(
        write_table(path, {**columns, "split": ["train", "b"]}), Columns("thumb")
    )
    # The option goes before the name of the shard; a shard may be empty.
    named = {"image": [b"1"], "label": ["a"], "part": ["val"], "who": ["x"]}
    write_table(tmp_path / "s/train-0.parquet", named)
    parquet.write_table(pyarrow.table(named).slice(0, 0), tmp_path / "s/train-1.parquet")
    images = find_labeled_images(tmp_path / "s", Columns(split="part", group_by="who"))
    assert (images.splits, images.groups) == (("validation",), ("x",))
    # Paths as before: a manifest.
    assert "1 of 1 images do not exist" in error_of(write_table(path, {"image": ["x.jpg"], "label": ["a"]}))


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        ([{"bytes": b"1", "path": "x"}], [-1], "row 1 has no label in the column 'label'"),
        ([{"bytes": b"1", "path": "x"}], [None], "row 1 has no label"),
        ([{"bytes": b"1", "path": "x"}], [2], "row 1 has the label 2; expected 0 to 1"),
        ([], [], "has no images"),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(tmp_path, images, labels, expected):
    assert expected in error_of(write_like_datasets(tmp_path / "0.parquet", images, labels))


def test_a_disk_that_fails_is_no_damage_of_a_parquet_file(tmp_path):
    class FailingFile(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = write_table(tmp_path / "t.parquet", {"image": [b"1"], "label": ["a"]})
    with FailingFile(path) as file, pytest.raises(OSError, match="Input/output error"):
        read_images("t.parquet", file, "image", [0])


def test_parquet_files_that_cannot_be_used_are_one_line(tmp_path, monkeypatch):
    path = tmp_path / "s/0.parquet"
    assert "expected a column image with the bytes of images" in error_of(write_table(path, {"a": [1]}).parent)
    assert "expected a column 'b' with the bytes" in error_of(path.parent, Columns(image="b"))
    assert "its columns are image; expected one of label" in error_of(write_table(path, {"image": [b"1"]}))
    assert "row 1 has no label" in error_of(write_table(path, {"image": [b"1"], "label": [[1]]}))
    path.write_bytes(b"PAR1 no")
    assert "is not a valid Parquet file" in error_of(path.parent)
    assert "is not a valid Parquet file" in error_of(path)
    write_table(path, {"image": [b"1" * 5000], "label": ["a"]}, compression=None)
    monkeypatch.setattr(image_table, "usable_memory", lambda: 10_000)
    with pytest.raises(MachineError, match=r"a row group has 0\.0 GB, and it is read at once"):
        find_labeled_images(path)


def test_class_names_that_are_no_list_are_not_used(tmp_path):
    for metadata in (b"no JSON", b"[]", b'{"info": {"features": {"label": {"names": 3}}}}'):
        schema = pyarrow.schema([("image", pyarrow.binary()), ("label", pyarrow.int64())], {"huggingface": metadata})
        parquet.write_table(pyarrow.table({"image": [b"1"], "label": [5]}, schema=schema), tmp_path / "0.parquet")
        assert find_labeled_images(tmp_path / "0.parquet").labels == ("5",)


def test_rows_whose_image_is_missing_or_damaged_are_errors_of_these_images(tmp_path):
    only_bytes = write_table(tmp_path / "1.parquet", {"image": [{"bytes": b"1"}], "label": ["a"]})
    assert describe(find_labeled_images(only_bytes)) == [("1.parquet/000000", "a", b"1")]
    images = [{"bytes": b"1" * 3000, "path": "x"}, {"bytes": None, "path": "y"}, None]
    path = write_like_datasets(tmp_path / "0.parquet", images, [0, 1, 1], compression=None)
    found = find_labeled_images(path)
    assert found.shards is not None
    assert [len(content) for content in found.shards.index.read_block([0, 1, 2])] == [3000, 0, 0]
    with pytest.raises(ImageError, match="the row has no image"):
        read_member(found, 1)
    with pytest.raises(DataError, match="has no row 4"):
        read_images("0.parquet", io.BytesIO(path.read_bytes()), "image", [3])
    content = path.read_bytes()
    before = path.stat()
    path.write_bytes(content[:4] + bytes(1000) + content[1004:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ImageError, match="is not a valid Parquet file"):
        read_member(found, 0)
    path.unlink()
    with pytest.raises(ImageError):
        read_member(found, 0)


def test_what_a_block_cannot_give_is_read_alone_and_tells_why(tmp_path, monkeypatch):
    path = pack(tmp_path / "0.tar", samples("a", "b", "a"))
    images = find_labeled_images(path)
    assert [member.kind for member in images.locate([2, 0]) if isinstance(member, Member)] == ["memory", "memory"]
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", 6)
    assert [member.kind for member in images.locate([1]) if isinstance(member, Member)] == ["tar"]
    monkeypatch.undo()
    monkeypatch.setattr(shards, "raise_if_changed", lambda file, version: None)
    path.write_bytes(path.read_bytes()[:513])
    kinds = [member.kind for member in images.locate([0, 1, 2]) if isinstance(member, Member)]
    assert kinds == ["tar", "tar", "tar"]
    path.unlink()
    (member,) = images.locate([0])
    assert isinstance(member, Member)
    with pytest.raises(ImageError, match="no such file"):
        member.read()


@pytest.mark.parametrize("split", ["test", "all"])
def test_evaluation_reads_shards_in_blocks(tmp_path, split):
    pack(tmp_path / "train.tar", samples("a", "b"))
    pack(tmp_path / "test.tar", samples("b", "a", "b"))
    images = select_images(tmp_path, Columns(), split, [])
    assert len(images) == (3 if split == "test" else 5)
    assert [source.content for source in images.sources([2, 0])] == [b"image 2", b"image 0"]
    assert [source.name for source in images.sources([1])] == [f"{tmp_path / 'test.tar'}/0001.jpg"]


def test_no_damage_of_a_parquet_footer_is_a_traceback(tmp_path):
    columns = {"image": [b"%d" % number for number in range(5)], "label": list("abbab")}
    path = write_table(tmp_path / "0.parquet", columns, row_group_size=3, store_schema=False)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    errors = set()
    for place in range(footer, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        try:
            images = find_labeled_images(path)
            for index in range(0, len(images), 3):
                read_member(images, index)
        except (DataError, ImageError) as error:
            errors.add(str(error))
    assert any("its columns differ in length" in error for error in errors)
    assert not any("\n" in error for error in errors)
