"""Images in tar and zip archives are read in place, and no archive leads outside of itself."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from clf_runtime.labeled import find_labeled_images

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
