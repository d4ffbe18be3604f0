"""The container of a bundle: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from bundles import FILES, manifest_of

from clf_deploy.bundle import archive
from clf_deploy.bundle.manifest import is_safe
from clf_runtime.errors import DataError, InvalidModelError


@pytest.fixture
def folder(tmp_path) -> Path:
    """The files of a bundle."""
    for path, content in FILES.items():
        target = tmp_path / "files" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return tmp_path / "files"


@pytest.fixture
def bundle(folder, tmp_path) -> Path:
    """A bundle of three files."""
    archive.write_archive(tmp_path / "x.clfb", manifest_of(FILES), folder)
    return tmp_path / "x.clfb"


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def refuse(path: Path, expected: str) -> None:
    """Check that a bundle is rejected, and that nothing is left of it."""
    before = content_of(path.parent)
    with pytest.raises(DataError) as caught:
        archive.unpack(path, path.parent / "unpacked")
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content_of(path.parent) == before
    assert not (path.parent / "unpacked").exists()


def test_a_bundle_unpacks_to_the_files_it_was_made_of(bundle, tmp_path):
    manifest = archive.unpack(bundle, tmp_path / "unpacked")
    assert manifest == archive.read_manifest(bundle) == manifest_of(FILES)
    assert content_of(tmp_path / "unpacked") == FILES | {"manifest.json": manifest.to_json()}
    assert (tmp_path / "unpacked/install.sh").stat().st_mode & 0o111
    assert archive.is_bundle(bundle)
    assert not archive.is_bundle(tmp_path / "files/model.onnx")


def test_the_model_alone_is_unpacked_for_as_long_as_it_is_needed(bundle, tmp_path):
    with archive.unpacked_model(bundle) as model:
        assert content_of(model.parent) == {"model.onnx": FILES["model.onnx"]}
    assert not model.exists()
    with pytest.raises(InvalidModelError) as caught, archive.unpacked_model(bundle) as model:
        raise InvalidModelError(f"{model}: not a model")
    assert str(caught.value) == f"{bundle}/model.onnx: not a model"
    for other in (tmp_path / "files/model.onnx", tmp_path / "missing", tmp_path):
        with archive.unpacked_model(other) as same:
            assert same == other


def test_tar_unpacks_the_same_files(bundle, tmp_path):
    done = subprocess.run(["tar", "xf", bundle, "-C", tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert content_of(tmp_path / "clf-bundle") == FILES | {"manifest.json": manifest_of(FILES).to_json()}


def test_the_same_files_give_the_same_bytes(bundle, folder, tmp_path):
    (folder / "model.onnx").touch()
    (folder / "model.onnx").chmod(0o600)
    archive.write_archive(tmp_path / "again.clfb", manifest_of(FILES), folder)
    assert (tmp_path / "again.clfb").read_bytes() == bundle.read_bytes()


def test_an_existing_folder_is_not_touched(bundle, tmp_path):
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(FileExistsError):
        archive.unpack(bundle, tmp_path / "unpacked")
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_each_cut_and_each_changed_byte_is_noticed(bundle):
    good = bundle.read_bytes()
    for size in (*range(0, len(good), 331), len(good) - 1):
        bundle.write_bytes(good[:size])
        refuse(bundle, "")
    for position in range(0, len(good), 61):
        bundle.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        refuse(bundle, "")
    bundle.write_bytes(good + b"\0")
    refuse(bundle, "it goes on after its end")


PATHS = ("../x", "/x", "a/../../x", "a/b/c", "", ".", "a//b", "C:\\x", "a\\b", "-rf", "a\nb", " a", "a\0", "b" * 101, 7)


@pytest.mark.parametrize("path", PATHS)
def test_no_part_lies_outside_the_folder(bundle, path):
    assert not is_safe(path)
    document = json.loads(manifest_of(FILES).to_json())
    document["parts"][0]["path"] = path
    write_with_manifest(bundle, json.dumps(document).encode())
    refuse(bundle, "is not allowed")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("format", "zip", "another format"),
        ("format_version", 2, "update clf-edge here"),
        ("platform", "linux-riscv64", "unknown"),
        ("platform", 7, "a text is missing"),
        ("python", "2.7", "expected 3.10 or later"),
        ("model", "other.onnx", "'other.onnx' is not among its parts"),
        ("signature", "other.sig", "'other.sig' is not among its parts"),
        ("signature", [], "a text is missing"),
        ("parts", [{"path": "model.onnx"}], "'bytes' is missing"),
        ("parts", [{"path": "model.onnx", "bytes": -1, "sha256": "0" * 64}], "its size is impossible"),
        ("parts", [{"path": "model.onnx", "bytes": True, "sha256": "0" * 64}], "its size is impossible"),
        ("parts", [{"path": "model.onnx", "bytes": 8**11, "sha256": "0" * 64}], "its size is impossible"),
        ("parts", [{"path": "model.onnx", "bytes": 1, "sha256": "x" * 64}], "its SHA-256 is not one"),
        ("parts", [{"path": "model.onnx", "bytes": 1, "sha256": "0" * 64}] * 2, "two parts have the same path"),
        ("parts", [{"path": "MANIFEST.json", "bytes": 1, "sha256": "0" * 64}], "two parts have the same path"),
        ("parts", None, "not iterable"),
    ],
)
def test_a_manifest_that_cannot_be_is_rejected(bundle, field, value, expected):
    document = json.loads(manifest_of(FILES).to_json())
    document[field] = value
    write_with_manifest(bundle, json.dumps(document).encode())
    refuse(bundle, expected)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b"\xff"])
def test_a_manifest_that_is_no_document_is_rejected(bundle, content):
    write_with_manifest(bundle, content)
    refuse(bundle, "its manifest cannot be used")


def test_a_manifest_in_another_form_is_rejected(bundle):
    write_with_manifest(bundle, json.dumps(json.loads(manifest_of(FILES).to_json())).encode())
    refuse(bundle, "its manifest was changed")


def test_a_manifest_of_gigabytes_is_not_read(bundle):
    member = tarfile.TarInfo("clf-bundle/manifest.json")
    member.size = 8**10
    bundle.write_bytes(member.tobuf(tarfile.USTAR_FORMAT))
    refuse(bundle, "not a bundle of clf-deploy")


def write_with_manifest(path: Path, content: bytes) -> None:
    """Write a bundle with any manifest, and the header that belongs to it."""
    header = archive._header("manifest.json", len(content))
    path.write_bytes(header + content + bytes(-len(content) % 512) + bytes(1024))


def member(name: str, kind: bytes, target: str = "", content: bytes = b"x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
    return info.tobuf(tarfile.GNU_FORMAT) + (content.ljust(512, b"\0") if info.size else b"")


@pytest.mark.parametrize(
    "hostile",
    [
        member("clf-bundle/install.sh", tarfile.SYMTYPE, "/etc/passwd"),
        member("clf-bundle/install.sh", tarfile.LNKTYPE, "../../etc/passwd"),
        member("clf-bundle/install.sh", tarfile.CHRTYPE),
        member("clf-bundle/install.sh", tarfile.DIRTYPE),
        member("../../../tmp/evil", tarfile.REGTYPE),
        member("/tmp/evil", tarfile.REGTYPE),
        member("x" * 300, tarfile.REGTYPE),
    ],
)
def test_no_member_but_the_ones_of_the_manifest_is_read(bundle, hostile, folder):
    content = bundle.read_bytes()
    start = content.index(b"clf-bundle/install.sh\0")
    for changed in (content[:start] + hostile + content[start:], content[:start] + hostile + content[start + 1024 :]):
        bundle.write_bytes(changed)
        refuse(bundle, "install.sh is not as its manifest says")


def test_tar_files_of_other_tools_are_rejected(folder, tmp_path):
    for name, mode in (("plain", "w"), ("compressed", "w:gz")):
        path = tmp_path / f"{name}.tar"
        with tarfile.open(path, mode) as made:
            made.add(folder, "clf-bundle")
        refuse(path, "not a bundle of clf-deploy; build one with clf-deploy bundle")


def test_the_manifest_lists_what_a_person_needs_to_know():
    assert (
        manifest_of(FILES)
        .to_json()
        .startswith(
            b'{\n "format": "clf-bundle",\n "format_version": 1,\n "clf_edge": "0.2.0",\n "platform": "linux-aarch64",'
        )
    )
