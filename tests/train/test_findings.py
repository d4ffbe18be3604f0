"""What people learn about their images before training: splits, groups, near-duplicates, odd files."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from odd_images import drawing
from PIL import Image

from clf_runtime.errors import DataError, UsageError
from clf_runtime.labeled import Columns
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import ModelSpec, Preprocess
from clf_train.class_table import lines_from_findings
from clf_train.config import DataSource, load_dataset
from clf_train.data import facts, findings, folder
from clf_train.data.cache import PixelCache
from clf_train.data.dataset import split_off
from clf_train.data.facts import compute_hashes, has_damaged_exif
from clf_train.data.findings import ClassCounts, DataFindings, analyze_dataset
from clf_train.data.loading import decode_dataset

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about EXIF, which the commands ignore, too

PREPROCESS = Preprocess("RGB", 64, 64, "crop", 1.0, "bilinear", (255, 255, 255))


def photo(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Return an image with shapes of many sizes that are different for each seed."""
    random = np.random.default_rng(seed)
    coarse, fine = (Image.fromarray(random.integers(0, 256, (n, n, 3), np.uint8)).resize((32, 32)) for n in (5, 32))
    return Image.blend(coarse, fine, 0.5).resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def encode(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def analyze(source: Path, folder_of_cache: Path, columns: Columns = Columns()) -> DataFindings:  # noqa: B008
    dataset = folder.load(source, 0.25, 0, columns)
    loaded = decode_dataset(dataset, PREPROCESS, PixelCache("memory", folder_of_cache))
    return analyze_dataset(loaded.dataset, loaded.facts, PREPROCESS)


def count_different_bits(one: bytes, other: bytes) -> int:
    hashes = compute_hashes(np.stack([pixels_from_image(content, PREPROCESS) for content in (one, other)]))
    return int(np.unpackbits(hashes[0] ^ hashes[1]).sum())


def test_a_copy_has_nearly_the_same_hash_and_another_image_has_not():
    original = photo(1, 640, 480)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    turned = encode(original.transpose(Image.Transpose.ROTATE_90), exif=exif)
    copies = (
        encode(original, quality=30),
        encode(original.resize((200, 150))),
        encode(original.point(lambda value: min(255, int(value * 1.1)))),
        turned,
    )
    for copy in copies:
        assert count_different_bits(encode(original), copy) <= findings._MAX_DIFFERENT_BITS
    for seed in range(2, 12):
        assert count_different_bits(encode(original), encode(photo(seed))) > 2 * findings._MAX_DIFFERENT_BITS
    assert compute_hashes(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 32)


def exif_block(*entries: bytes, order: str = "<", count: int | None = None, magic: int = 42) -> bytes:
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", magic, 8)
    return (
        b"Exif\0\0"
        + header
        + struct.pack(f"{order}H", len(entries) if count is None else count)
        + b"".join(entries)
        + bytes(4)
    )


ORIENTATION = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
DAMAGED_EXIF = {
    "no byte order": b"Exif\0\0XX*\0",
    "no header": b"Exif\0\0II",
    "no magic number": exif_block(ORIENTATION, magic=43),
    "entries missing": exif_block(ORIENTATION, count=9),
    "value missing": exif_block(struct.pack("<HHII", 0x010F, 2, 500, 26)),
    "impossible orientation": exif_block(struct.pack("<HHIHH", 0x0112, 3, 1, 77, 0)),
}


@pytest.mark.parametrize("kind", DAMAGED_EXIF)
def test_a_damaged_exif_block_is_noticed(kind):
    with Image.open(io.BytesIO(encode(photo(1), exif=DAMAGED_EXIF[kind]))) as image:
        assert has_damaged_exif(image)


def test_an_intact_exif_block_is_not_damaged():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "a camera with a long name", "2026:01:01 00:00:00"
    for content in (encode(photo(1), exif=exif), encode(photo(1)), encode(photo(1), exif=exif_block(ORIENTATION))):
        with Image.open(io.BytesIO(content)) as image:
            assert not has_damaged_exif(image)


def test_odd_images_are_counted_with_the_first_as_an_example(tmp_path):
    for label in ("a", "b"):
        for number in range(16):
            save(tmp_path / f"data/{label}/{number:02}.jpg", photo(100 * ord(label) + number))
    save(tmp_path / "data/a/damaged.jpg", photo(900), exif=DAMAGED_EXIF["entries missing"])
    save(tmp_path / "data/a/tiny.png", drawing(9, 9))
    save(tmp_path / "data/b/long.png", drawing(700, 100))
    save(tmp_path / "data/b/huge.png", Image.new("1", (8000, 7000)))
    found = {finding.kind: finding for finding in analyze(tmp_path / "data", tmp_path).findings}
    assert set(found) == {"damaged-exif", "tiny", "huge", "elongated"}
    assert found["damaged-exif"].message == (
        "1 of 36 images have damaged EXIF data, so they may be turned the wrong way (the first is a/damaged.jpg, "
        "160 x 120)"
    )
    assert found["tiny"].examples == ("a/tiny.png",)
    assert found["huge"].examples == ("b/huge.png",)
    assert "--resize pad keeps everything (the first is b/long.png, 700 x 100)" in found["elongated"].message


def test_small_images_are_not_odd_where_all_are_small(tmp_path):
    for label in ("a", "b"):
        for number in range(16):
            save(tmp_path / f"data/{label}/{number:02}.png", photo(100 * ord(label) + number, 8, 8))
    assert not analyze(tmp_path / "data", tmp_path).findings


def test_near_duplicates_across_the_splits_are_found(tmp_path):
    for part, count in (("train", 12), ("test", 3)):
        for label in ("a", "b"):
            for number in range(count):
                seed = len(list(tmp_path.rglob("*.jpg")))
                save(tmp_path / f"data/{part}/{label}/{number:02}.jpg", photo(seed))
    shutil.copy(tmp_path / "data/train/a/03.jpg", tmp_path / "data/test/a/same.jpg")
    save(tmp_path / "data/test/b/like.jpg", photo(3, 120, 90), quality=60)
    result = analyze(tmp_path / "data", tmp_path)
    pairs = {(pair.name, pair.training_name) for pair in result.near_duplicates if pair.name.startswith("test")}
    assert pairs == {("test/a/same.jpg", "train/a/03.jpg"), ("test/b/like.jpg", "train/a/03.jpg")}
    messages = {finding.kind: finding.message for finding in result.findings}
    assert messages["duplicates"].startswith("1 of 8 test images are training images too (the first is test/a/same.jpg")
    assert messages["near-duplicates"].endswith("--group-by keeps such images in one split")
    assert result.origins == {"train": "train", "test": "test"}


def test_with_too_many_images_only_equal_files_are_found(monkeypatch):
    hashes = compute_hashes(np.stack([pixels_from_image(photo(seed), PREPROCESS) for seed in range(4)]))
    nearest, distances = findings._find_nearest(hashes, hashes[::-1])
    assert (nearest.tolist(), distances.tolist()) == ([3, 2, 1, 0], [0, 0, 0, 0])
    monkeypatch.setattr(findings, "_MAX_PAIRS", 15)
    assert findings._find_nearest(hashes, hashes)[1].tolist() == [facts.HASH_BITS] * 4


def write_sequences(root: Path, sequences: int = 12, images: int = 4) -> Path:
    """Draw bursts: in each, images of one class that differ little."""
    for sequence in range(sequences):
        for number in range(images):
            label = "ab"[sequence % 2]
            save(root / f"{label}/s{sequence:02}_{number}.jpg", photo(sequence, 160 + number, 120), quality=90 - number)
    return root


def test_images_of_a_group_share_a_split(tmp_path):
    source = write_sequences(tmp_path / "data")
    assert "near-duplicates" in {finding.kind for finding in analyze(source, tmp_path).findings}
    grouped = Columns(group_by=r"s\d+")
    assert analyze(source, tmp_path, grouped).near_duplicates == ()
    dataset = folder.load(source, 0.25, 0, grouped)
    groups = [set(split.groups) for split in dataset.splits]
    assert [len(part) for part in groups] == [10 - len(groups[1]), len(groups[1]), 2]
    assert len(set.union(*groups)) == 12
    assert set(dataset.test.targets.tolist()) == {0, 1}


def test_groups_of_several_classes_are_split_as_evenly_as_they_allow(tmp_path):
    rows = [("path", "label", "camera")]
    for number in range(200):
        rows.append((save(tmp_path / f"{number:03}.jpg", drawing(8, 8)).name, "abcd"[number % 4], f"c{number % 13}"))
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, rows)))
    dataset = folder.load(tmp_path / "list.csv", 0.2, 0, Columns(group_by="camera"))
    assert 0.15 < len(dataset.test) / 200 < 0.3
    assert len({group for split in dataset.splits for group in set(split.groups)}) == 13
    assert sum(len(set(split.groups)) for split in dataset.splits) == 13
    (tmp_path / "list.csv").write_text("path,label,camera\n000.jpg,a,x\n001.jpg,a,x\n002.jpg,b,y\n003.jpg,b,z\n")
    with pytest.raises(DataError, match=r"class 'a' has all of its 2 images in one group; .* change --group-by"):
        folder.load(tmp_path / "list.csv", 0.2, 0, Columns(group_by="camera"))


def test_without_groups_the_splits_are_those_of_former_releases(tmp_path):
    import hashlib

    for number in range(50):
        save(tmp_path / f"{'ab'[number % 3 == 0]}/{number:02}.jpg", drawing(8, 8))
    dataset = folder.load(tmp_path, 0.2, 7)
    for label in "ab":
        names = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / label).iterdir())
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"7/test/{name}".encode()).digest())
        expected = sorted(ranked[: round(0.2 * len(names))])
        assert [name for name in dataset.test.names if name.startswith(label)] == expected


def test_groups_in_several_parts_of_the_data_are_a_warning(tmp_path):
    for part in ("train", "test"):
        write_sequences(tmp_path / f"data/{part}", 4)
    result = analyze(tmp_path / "data", tmp_path, Columns(group_by=r"s\d+"))
    (finding,) = (finding for finding in result.findings if finding.kind == "shared-groups")
    assert finding.count == 16


def test_unbalanced_classes_and_those_with_few_images_are_a_warning(tmp_path):
    for number in range(60):
        save(tmp_path / f"{'ab'[number > 55]}/{number:02}.jpg", photo(number))
    messages = [finding.message for finding in analyze(tmp_path, tmp_path).findings]
    assert messages[0].startswith("the classes are unbalanced: 'a' has 38 training images, 'b' has 2")
    assert messages[1] == "1 class has fewer than 10 training images (the first is 'b' with 2)"


def test_the_table_names_what_is_used_as_which_split():
    counts = tuple(ClassCounts(label, 1200, 30, 4) for label in ("cat", "d" * 60))
    lines = list(lines_from_findings(DataFindings(counts, {"train": "train", "test": "val"}, (), ())))
    assert lines[1].split() == ["cat", "1,200", "30", "4"]
    assert lines[2].split()[0] == "d" * 39 + "…"
    assert lines[3].split() == ["total", "2,400", "60", "8"]
    assert lines[4] == "splits: train to train on, val as the test split; a part of train is the validation split"
    many = tuple(ClassCounts(f"class {number}", number, 0, 0) for number in range(10_000))
    lines = list(lines_from_findings(DataFindings(many, {}, (), ())))
    assert len(lines) == 34
    assert "… 9,970 more classes …" in lines
    assert lines[-1] == "splits: chosen by the seed, because the data has no test part (see --test-split)"


def test_ten_thousand_classes_are_split_in_seconds(tmp_path):
    save(tmp_path / "image.jpg", drawing(8, 8))
    rows = ["path,label"]
    for number in range(20_000):
        (tmp_path / f"{number}.jpg").symlink_to("image.jpg")
        rows.append(f"{number}.jpg,class {number // 2}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    dataset = folder.load(tmp_path / "list.csv", 0.2, 0)
    assert len(dataset.labels) == len(dataset.test) == len(dataset.train) == 10_000


def test_a_part_without_some_classes_is_a_warning_and_new_classes_are_an_error(tmp_path):
    rows = ["path,label,split"]
    for number, label in enumerate("abcabcabc"):
        save(tmp_path / f"{number}.jpg", drawing(8, 8))
        rows.append(f"{number}.jpg,{label},train")
    save(tmp_path / "t.jpg", drawing(8, 8))
    (tmp_path / "list.csv").write_text("\n".join([*rows, "t.jpg,a,test"]))
    dataset = folder.load(tmp_path / "list.csv", 0.2, 0)
    assert dataset.warnings == (f"{tmp_path}/list.csv: test has no images of 2 classes (the first is 'b')",)
    (tmp_path / "list.csv").write_text("\n".join([*rows, "t.jpg,new,test"]))
    with pytest.raises(DataError, match="the classes of test differ from those of the training split"):
        folder.load(tmp_path / "list.csv", 0.2, 0)
    (tmp_path / "list.csv").write_text("path,label,split\n0.jpg,a,test\n1.jpg,b,test\n")
    with pytest.raises(DataError, match="has no training images, only test; add some"):
        folder.load(tmp_path / "list.csv", 0.2, 0)


def test_columns_do_not_apply_to_a_named_data_set():
    with pytest.raises(UsageError, match="digits: is a named data set, which has no columns and no groups"):
        load_dataset(DataSource("digits", columns=Columns(group_by="x")))


@pytest.mark.parametrize("kind", ["archive", "manifest"])
def test_export_finds_the_test_split_of_an_archive_and_of_a_manifest_again(command, tmp_path, kind):
    write_sequences(tmp_path / "data")
    if kind == "archive":
        shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path, "data")
        shutil.rmtree(tmp_path / "data")
        options = ("--data", "data.zip", "--group-by", r"s\d+")
        columns = {"group_by": r"s\d+"}
    else:
        names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))
        lines = [f"{name};{name.split('/')[1]};{name[-8:-6]}" for name in names]
        (tmp_path / "list.csv").write_text("\n".join(["file;kind;burst", *lines]), encoding="utf-8-sig")
        options = ("--data", "list.csv", "--label-column", "kind", "--group-by", "burst")
        columns = {"group_by": "burst", "label": "kind"}
    trained = command("clf-train", *options, "--epochs", 1, "--model", "tiny-convnet")
    assert trained.code == 0, trained.err
    assert "splits: chosen by the seed" in trained.err
    spec = ModelSpec.from_json((tmp_path / "artifacts/model.json").read_text(), "model.json")
    assert spec.provenance.columns == columns
    exported = command("clf-export")
    assert exported.code == 0, exported.err
    content = json.loads((tmp_path / "artifacts/model.json").read_text())
    content["provenance"]["columns"] = {"fold": "x"}
    (tmp_path / "artifacts/model.json").write_text(json.dumps(content))
    done = command("clf-export", "--overwrite")
    assert done.code == 3
    assert "provenance.columns has fold; expected only image, label, split and group_by" in done.error


def test_a_damaged_archive_ends_the_training_with_one_line(command, tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04 and nothing else")
    done = command("clf-train", "--data", "data.zip")
    assert done.code == 3
    assert done.error.startswith("clf-train: data.zip: the archive is damaged (")
    assert done.error.endswith("); copy or pack it again")


def test_every_image_is_split_off_by_its_group_only_once(tmp_path):
    write_sequences(tmp_path / "data", 10, 3)
    images = folder.load(tmp_path / "data", 0.2, 0, Columns(group_by=r"s\d+")).train
    rest, part = split_off(images, 0.3, 1, "test", smallest=2)
    assert Counter(rest.names + part.names) == Counter(images.names)
    assert not set(rest.groups) & set(part.groups)
