"""Images in tar and zip archives are read in place, and no archive leads outside of itself."""

from __future__ import annotations

import contextlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clf_runtime.errors import DataError, ImageError, MachineError
from clf_runtime.labeled import archive, find_labeled_images, members

FILES = {f"pets/{label}/{number}.jpg": f"{label} {number}".encode() for label in ("cat", "dog") for number in range(3)}
MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive of the kind that its suffix names."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, MODES["".join(path.suffixes)]) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", [".zip", *MODES])
def test_the_images_of_an_archive_are_those_of_its_class_folders(tmp_path, suffix):
    images = find_labeled_images(pack(tmp_path / f"a{suffix}", FILES))
    assert list(zip(images.names, images.labels, strict=True)) == [
        (name.removeprefix("pets/"), name.split("/")[1]) for name in FILES
    ]
    assert [images.file(index).read() for index in range(6)] == list(FILES.values())
    assert str(images.file(0)) == f"{tmp_path}/a{suffix}/pets/cat/0.jpg"
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def add_link(path: Path, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def test_links_in_an_archive_lead_to_its_own_images(tmp_path):
    path = pack(tmp_path / "a.tar", FILES)
    add_link(path, "pets/dog/again.jpg", "1.jpg")
    add_link(path, "pets/dog/other.jpg", "../cat/2.jpg")
    add_link(path, "pets/dog/twice.jpg", "other.jpg")
    add_link(path, "pets/dog/hard.jpg", "pets/dog/0.jpg", tarfile.LNKTYPE)
    add_link(path, "pets/dog/folder", "../cat")
    images = find_labeled_images(path)
    content = {name: images.file(index).read() for index, name in enumerate(images.names)}
    assert len(content) == 10
    assert content["dog/again.jpg"] == b"dog 1"
    assert content["dog/other.jpg"] == content["dog/twice.jpg"] == b"cat 2"
    assert content["dog/hard.jpg"] == b"dog 0"
    path = pack(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zip_link("pets/dog/again.jpg"), "../cat/1.jpg")
    images = find_labeled_images(path)
    assert images.file(images.names.index("dog/again.jpg")).read() == b"cat 1"


def test_hidden_members_and_empty_folders_are_as_on_disk(tmp_path):
    extra = {"pets/.git/x.jpg": b"", "__MACOSX/pets/cat/._0.jpg": b"", "pets/cat/._0.jpg": b"", "pets/read.me": b""}
    assert len(find_labeled_images(pack(tmp_path / "a.zip", FILES | extra))) == 6
    assert len(find_labeled_images(pack(tmp_path / "a.tar", FILES | extra))) == 6
    for suffix in (".zip", ".tar"):
        path = pack(tmp_path / f"b{suffix}", {"./" + name: content for name, content in FILES.items()})
        assert len(find_labeled_images(path)) == 6
        if suffix == ".zip":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("./", "")
                archive.writestr("pets/bird/", "")
        else:
            add_link(path, "./", "", tarfile.DIRTYPE)
            add_link(path, "pets/bird", "", tarfile.DIRTYPE)
        with pytest.raises(DataError, match="pets/bird: has no images"):
            find_labeled_images(path)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize("name", ["../out/1.jpg", "/etc/1.jpg", "a/../../1.jpg", "C:\\x\\1.jpg", "..\\1.jpg"])
def test_a_member_that_leads_outside_makes_the_archive_invalid(tmp_path, suffix, name):
    with pytest.raises(DataError, match="leads outside"):
        find_labeled_images(pack(tmp_path / f"a{suffix}", FILES | {name: b"x"}))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("../../../etc/passwd", "leads outside of the archive, to ../etc/passwd"),
        ("/etc/passwd", "leads outside of the archive, to /etc/passwd"),
        ("gone.jpg", "leads to pets/dog/gone.jpg, which is not in the archive"),
        ("link.jpg", "leads to pets/dog/link.jpg, which is not in the archive"),
    ],
)
def test_a_link_that_leads_outside_or_nowhere_makes_the_archive_invalid(tmp_path, target, message):
    path = pack(tmp_path / "a.tar", FILES)
    add_link(path, "pets/dog/link.jpg", target)
    with pytest.raises(DataError, match=message):
        find_labeled_images(path)
    path = pack(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zip_link("pets/dog/link.jpg"), target)
    with pytest.raises(DataError, match=message):
        find_labeled_images(path)


def test_a_cut_off_archive_is_damaged(tmp_path):
    large = {name: content * 3000 for name, content in FILES.items()}
    for suffix in (".zip", *MODES):
        content = pack(tmp_path / f"a{suffix}", large).read_bytes()
        for share in (0, 0.3, 0.6, 0.9):
            (tmp_path / f"a{suffix}").write_bytes(content[: int(len(content) * share)])
            if suffix == ".tar" and share == 0.9:
                continue  # only the padding behind the last member is missing
            with pytest.raises(DataError, match="is damaged"):
                find_labeled_images(tmp_path / f"a{suffix}")


def test_a_damaged_header_in_a_tar_archive_is_no_silent_end(tmp_path):
    path = pack(tmp_path / "a.tar", FILES)
    content = bytearray(path.read_bytes())
    content[4 * 512 + 150] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="no valid member at byte 2,048"):
        find_labeled_images(path)
    pack(path, FILES)
    path.write_bytes(path.read_bytes()[: 11 * 512])
    with pytest.raises(DataError, match="is damaged"):
        find_labeled_images(path)


def read(path: Path) -> bytes:
    return find_labeled_images(path).file(0).read()


def test_damaged_members_are_unreadable_images(tmp_path):
    path = pack(tmp_path / "a.zip", {name: content * 100 for name, content in FILES.items()})
    whole = path.read_bytes()
    start = whole.index(b"pets/cat/0.jpg") + 14
    for place, change, message in (
        (start + 2, b"\xff\xff\xff", "cannot be decompressed|differs from the archive's checksum"),
        (whole.index(b"PK\x03\x04"), b"XX", "has no member at the place that its index names"),
    ):
        images = find_labeled_images(path)
        path.write_bytes(whole[:place] + change + whole[place + len(change) :])
        with pytest.raises(ImageError, match=message) as raised:
            images.file(0).read()
        assert raised.value.kind == "damaged"
        path.write_bytes(whole)
    images = find_labeled_images(path)
    path.write_bytes(whole[: start + 3])
    with pytest.raises(ImageError, match="ends before the image does"):
        images.file(0).read()
    path.unlink()
    with pytest.raises(ImageError) as raised:
        images.file(0).read()
    assert raised.value.kind == "not-found"
    with pytest.raises(ImageError, match="zero bytes"):
        read(pack(tmp_path / "b.tar", FILES | {"pets/cat/0.jpg": b""}))


def test_a_member_is_never_read_beyond_its_bounds(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.zip", FILES | {"pets/cat/0.jpg": bytes(100_000)})
    content = path.read_bytes().replace((100_000).to_bytes(4, "little"), (99_000).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(ImageError, match="differs from the archive's checksum"):
        read(path)
    monkeypatch.setattr(members, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(ImageError, match="99,000 bytes, expected at most 1,000"):
        read(path)


def test_members_that_overlap_are_a_zip_bomb(tmp_path):
    path = pack(tmp_path / "a.zip", FILES)
    content = path.read_bytes()
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    path.write_bytes(content[: second + 42] + bytes(4) + content[second + 46 :])  # the offset of the first member
    with pytest.raises(DataError, match=r"(?i)overlap"):
        find_labeled_images(path)


def test_encrypted_or_unusual_members_are_errors(tmp_path):
    path = pack(tmp_path / "a.zip", FILES)
    content = path.read_bytes()
    entry = content.index(b"PK\x01\x02")
    path.write_bytes(content[: entry + 8] + b"\x01" + content[entry + 9 :])
    with pytest.raises(DataError, match="is encrypted"):
        find_labeled_images(path)
    path.write_bytes(content[: entry + 10] + b"\x0c" + content[entry + 11 :])
    with pytest.raises(DataError, match="has compression method 12"):
        find_labeled_images(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zip_link("pets/cat/0.jpg"), "x" * 5000)
    with pytest.raises(DataError, match="is a link of 5,000 bytes"):
        find_labeled_images(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zip_link("pets/cat/0.jpg"), "")
    with pytest.raises(DataError, match="zero bytes"):
        find_labeled_images(path)
    info = tarfile.TarInfo("pets/cat/0.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "5"}
    info.size = 512
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info, io.BytesIO(b"0\n".ljust(512, b"\0")))
    with pytest.raises(DataError, match="is stored as a sparse file"):
        find_labeled_images(tmp_path / "a.tar")


def test_a_compressed_archive_must_fit_into_the_memory(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.tgz", FILES)
    monkeypatch.setattr(archive, "usable_memory", lambda: 4000)
    with pytest.raises(MachineError, match=r"decompress it to .tar, which is read in place"):
        find_labeled_images(path)
    monkeypatch.setitem(sys.modules, "lzma", None)
    (tmp_path / "a.tar.xz").touch()
    with pytest.raises(MachineError, match="this Python lacks the module lzma"):
        find_labeled_images(tmp_path / "a.tar.xz")


def fuzz(folder: Path, rounds: int, seed: int) -> None:
    """Change bytes of archives: the images are found and read, or DataError or ImageError says why not."""
    random = np.random.default_rng(seed)
    for suffix in (".zip", ".tar", ".tgz", ".tar.xz"):
        path = pack(folder / f"fuzz{suffix}", FILES)
        whole = path.read_bytes()
        for _ in range(rounds):
            content = np.frombuffer(whole, np.uint8).copy()
            places = random.integers(0, len(content), random.integers(1, 8))
            content[places] = random.integers(0, 256, len(places))
            path.write_bytes(content[: len(content) - int(random.integers(0, 3) == 0) * 100].tobytes())
            with contextlib.suppress(DataError, ImageError):
                images = find_labeled_images(path)
                assert all(not name.startswith("/") and ".." not in name for name in images.names)
                for index in range(len(images)):
                    images.file(index).read()


def test_a_damaged_archive_never_crashes(tmp_path):
    fuzz(tmp_path, rounds=60, seed=0)


@pytest.mark.slow
def test_many_damaged_archives_never_crash(tmp_path):
    fuzz(tmp_path, rounds=2_000, seed=1)
