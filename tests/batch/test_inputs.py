"""From the arguments of clf-batch to images: what is found, in which order, and what is read from it."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import tarfile
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")
from pyarrow import parquet  # noqa: E402

from clf_batch.ahead import read_ahead  # noqa: E402
from clf_batch.inputs import reading  # noqa: E402
from clf_batch.inputs.find import find_units  # noqa: E402
from clf_batch.inputs.reading import read_images  # noqa: E402
from clf_batch.inputs.units import ImageFile, TableRows, TarArchive, Unusable  # noqa: E402
from clf_batch.options import InputOptions  # noqa: E402
from clf_batch.shards import is_part, make_shards  # noqa: E402
from clf_runtime.errors import DataError, ImageError, MachineError, UsageError  # noqa: E402

MAX_BYTES = 1_000_000


def units(*arguments: object, recursive: bool = False, column: str | None = None) -> list:
    return list(find_units(InputOptions(tuple(map(str, arguments)), recursive, column, 100, "")))


def read(found: list, folder: object = "") -> dict[str, object]:
    return {source.name: source.content for source in read_images(found, str(folder), MAX_BYTES)}


@pytest.fixture
def bucket():
    """An empty folder of fsspec's file system in memory."""
    files = fsspec.filesystem("memory")
    files.rm("/bucket", recursive=True) if files.exists("/bucket") else None
    yield files
    files.rm("/bucket", recursive=True) if files.exists("/bucket") else None


def test_local_names_mean_what_they_mean_for_clf_run(samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/more").mkdir(parents=True)
    for name in ("photos/b.png", "photos/a.png", "photos/more/c.png"):
        shutil.copy(samples[0], name)
    Path("photos/notes.txt").write_text("no image")
    Path("names.txt").write_text("photos/b.png\ngone.png\nmemory://bucket/x.png\n")
    assert units("photos") == [ImageFile("photos/a.png"), ImageFile("photos/b.png")]
    assert len(units("photos", recursive=True)) == 3
    assert units("photos/b*") == [ImageFile("photos/b.png")]
    assert [unit.name for unit in units("@names.txt")] == ["photos/b.png", "gone.png", "memory://bucket/x.png"]
    assert units("@gone.txt") == [Unusable("@gone.txt", "not-found", "no such file or directory")]
    with pytest.raises(UsageError, match="stdin is for clf-run"):
        units("-")


def test_a_url_is_a_file_a_folder_a_pattern_or_a_list(bucket):
    for name in ("a.png", "b.PNG", "deep/c.jpg", "deep/x.txt", ".hidden.png"):
        bucket.pipe(f"/bucket/{name}", b"x")
    bucket.pipe("/bucket/list.txt", b"memory:///bucket/a.png\r\n\nlocal.png\n")
    assert [unit.name for unit in units("memory://bucket")] == ["memory:///bucket/a.png", "memory:///bucket/b.PNG"]
    assert len(units("memory://bucket/", recursive=True)) == 3
    assert units("memory://bucket/a.png") == [ImageFile("memory://bucket/a.png")]
    assert units("memory://bucket/*/*.jpg") == [ImageFile("memory:///bucket/deep/c.jpg")]
    assert [unit.name for unit in units("@memory://bucket/list.txt")] == ["memory:///bucket/a.png", "local.png"]
    assert units("memory://bucket/deep/*.gif")[0].kind == "empty"
    with pytest.raises(MachineError, match="memory://nothing: there is no such file, folder or bucket"):
        units("memory://nothing")
    with pytest.raises(MachineError, match="nonsense://x: "):
        units("nonsense://x")


def test_files_behind_urls_are_read_as_bytes_and_failures_are_errors(bucket):
    bucket.pipe("/bucket/a.png", b"content")
    bucket.pipe("/bucket/empty.png", b"")
    bucket.pipe("/bucket/large.png", b"x" * MAX_BYTES)
    names = [f"memory:///bucket/{name}.png" for name in ("a", "empty", "large", "gone", "a")]
    found = [(source.name, source.content) for source in read_images([*map(ImageFile, names)], "", MAX_BYTES)]
    assert [name for name, _ in found] == names
    assert found[0][1] == found[4][1] == b"content"
    assert [content.kind for _, content in found[1:4]] == ["empty", "too-large", "not-found"]


def test_a_csv_file_names_paths_beside_it(tmp_path, samples):
    table = tmp_path / "table.csv"
    table.write_text(f"id;image\n1;a.png\n2;{samples[0]}\n3;memory://bucket/x.png\n4;\n")
    found = units(table)
    assert [unit.name for unit in found[:3]] == [f"{tmp_path}/a.png", str(samples[0]), "memory://bucket/x.png"]
    assert isinstance(found[3], Unusable)
    assert units(table, column="image") == found
    with pytest.raises(DataError, match=r"its columns are id, image; expected a column 'photo'"):
        units(table, column="photo")
    table.write_text("id,label\n1,cat\n")
    with pytest.raises(DataError, match="expected one of path, image"):
        units(table)


def test_a_parquet_file_has_paths_or_bytes(tmp_path, samples):
    parquet.write_table(pa.table({"path": ["a.png", "b.png"], "label": ["x", "y"]}), tmp_path / "paths.parquet")
    assert units(tmp_path / "paths.parquet") == [ImageFile(f"{tmp_path}/a.png"), ImageFile(f"{tmp_path}/b.png")]

    contents = [path.read_bytes() for path in samples[:5]] + [None]
    table = pa.table({"name": [f"image-{n}" for n in range(6)], "bytes": contents})
    parquet.write_table(table, tmp_path / "bytes.parquet", row_group_size=4)
    found = units(tmp_path / "bytes.parquet")
    assert [(unit.first, unit.rows) for unit in found] == [(0, 4), (4, 2)]
    images = read(found)
    assert list(images) == [f"image-{n}" for n in range(6)]
    assert [*images.values()][:5] == contents[:5]
    assert images["image-5"].kind == "empty"

    nested = pa.table({"image": [{"bytes": contents[0], "path": "x.png"}, {"bytes": contents[1], "path": None}]})
    parquet.write_table(nested, tmp_path / "nested.parquet")
    assert list(read(units(tmp_path / "nested.parquet"))) == ["x.png", f"{tmp_path}/nested.parquet#row 2"]

    (tmp_path / "no.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="is not a valid Parquet file"):
        units(tmp_path / "no.parquet")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_damage_of_a_parquet_file_is_reported(tmp_path):
    """In a process of its own, because pyarrow may end it when it reads damaged pages."""
    path = tmp_path / "table.parquet"
    table = pa.table({"bytes": [bytes([n]) * 50 for n in range(40)], "name": [f"{n}.png" for n in range(40)]})
    parquet.write_table(table, path, row_group_size=10)
    whole = path.read_bytes()
    generator = random.Random(1)
    outcomes = Counter()
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        child = os.fork()
        if not child:
            try:
                contents = [*read(units(path)).values()]
                code = 1 if any(isinstance(content, ImageError) for content in contents) else 0
            except DataError:
                code = 2
            except BaseException:
                code = 3
            os._exit(code)
        outcomes[os.waitpid(child, 0)[1]] += 1
    assert outcomes.keys() == {0, 1 << 8, 2 << 8}, outcomes  # unnoticed, or in a row group, or in the whole file


def test_a_failing_disk_is_not_called_damage(tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    parquet.write_table(pa.table({"bytes": [b"x"]}), path)

    class FailingFile(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    found = units(path)
    monkeypatch.setattr(reading, "open_file", FailingFile)
    (content,) = read(found).values()
    assert (content.kind, str(content)) == ("unreadable", "input/output error")


def test_a_tar_archive_is_read_on_the_worker(tmp_path, samples):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for sample in samples[:3]:
            archive.add(sample, f"x/{sample.name}")
            archive.addfile(tarfile.TarInfo(f"x/{sample.stem}.cls"), io.BytesIO())
    assert units("shard.tar") == [TarArchive("shard.tar")]
    images = read([TarArchive("shard.tar")], tmp_path)
    assert images == {f"shard.tar/x/{sample.name}": sample.read_bytes() for sample in samples[:3]}

    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        end = archive.getmembers()[1].offset
    path.write_bytes(whole[:end])
    cut = read([TarArchive("shard.tar")], tmp_path)
    assert cut.keys() == {f"shard.tar/x/{samples[0].name}", "shard.tar"}
    assert f"it ends at byte {end:,} without an end mark" in str(cut["shard.tar"])
    path.write_bytes(whole[:1500])
    broken = read([TarArchive("shard.tar")], tmp_path)
    assert broken["shard.tar"].kind == "damaged"
    path.unlink()
    assert read([TarArchive("shard.tar")], tmp_path)["shard.tar"].kind == "not-found"


def test_shards_follow_from_the_names_and_are_formed_while_these_are_found():
    endless = (ImageFile(f"{number}.png") for number in count())
    shards = make_shards(endless, 3)
    first, second = next(shards), next(shards)
    assert [unit.name for unit in second.units] == ["3.png", "4.png", "5.png"]
    assert (first.index, second.index) == (0, 1)
    assert next(make_shards([ImageFile(f"{n}.png") for n in range(9)], 3)) == first
    assert is_part(first.file_name("run"))
    assert len({first.file_name("run"), first.file_name("other"), second.file_name("run")}) == 3


def test_containers_of_unknown_size_are_shards_of_their_own():
    found = [ImageFile("a"), TarArchive("t"), ImageFile("b"), TableRows("p", 0, 0, 9, "bytes", None), ImageFile("c")]
    assert [len(shard.units) for shard in make_shards(found, 4)] == [1, 1, 1, 1, 1]
    assert [len(shard.units) for shard in make_shards(found, 10)] == [1, 1, 2, 1]


def test_reading_ahead_keeps_the_order_and_passes_errors_on():
    def numbers():
        yield from range(5)
        raise ImageError("damaged", "after five")

    ahead = read_ahead(numbers(), 3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ImageError, match="after five"):
        next(ahead)
    assert next(read_ahead(iter(count()), 2)) == 0
