"""The container of a bundle: a tar file of which every byte follows from the manifest and the files.

The manifest is the first member; the others follow in its order. Each header is a function of path and size: POSIX
ustar, a regular file, owner 0, one fixed time. A reader therefore parses no headers. It builds the only one that is
valid, and compares: links, devices, absolute paths, extensions and duplicates cannot be expressed. `tar xf` unpacks it,
too.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clf_deploy.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, Part
from clf_runtime.errors import DataError, InvalidModelError

FOLDER = "clf-bundle"  # what `tar xf` creates

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_TIME = 315532800  # 1980-01-01; tar warns about files of 1970
_EXECUTABLE = ("install.sh",)
_PIECE_BYTES = 1 << 20


def write_archive(path: Path, manifest: Manifest, folder: Path) -> None:
    """Write a bundle of the files in a folder.

    Args:
        path: The new file.
        manifest: Lists the files.
        folder: Contains them.

    Raises:
        OSError: A file cannot be read or written.
    """
    content = manifest.to_json()
    with path.open("wb") as archive:
        archive.write(_header(MANIFEST, len(content)) + content + _padding(len(content)))
        for part in manifest.parts:
            archive.write(_header(part.path, part.bytes))
            with (folder / part.path).open("rb") as file:
                shutil.copyfileobj(file, archive, _PIECE_BYTES)
            archive.write(_padding(part.bytes))
        archive.write(_END)


def is_bundle(path: Path) -> bool:
    """Return whether a file starts like a bundle. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return file.read(_BLOCK).startswith(f"{FOLDER}/{MANIFEST}\0".encode())


def read_manifest(path: Path) -> Manifest:
    """Read what a bundle says about itself, without verifying its parts. Raises DataError, OSError."""
    with _opened(path) as (manifest, _):
        return manifest


@contextlib.contextmanager
def unpacked_model(path: Path) -> Iterator[Path]:
    """Yield the model inside a bundle, beside its signature, in a folder that lasts as long as the block.

    Any other file is yielded as it is. What is raised inside about the model names the bundle.

    Raises:
        DataError: The bundle is damaged.
        OSError: A file cannot be read or written.
    """
    # What is no regular file is reported by whoever opens it.
    if not path.is_file() or not is_bundle(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="clf-bundle-") as name:
        folder = Path(name, FOLDER)
        manifest = unpack(path, folder, only_model=True)
        try:
            yield folder / manifest.model
        except (InvalidModelError, DataError) as error:
            raise type(error)(str(error).replace(str(folder), str(path))) from None


def unpack(path: Path, folder: Path, *, only_model: bool = False) -> Manifest:
    """Write the files of a bundle into a new folder. Every file is verified; nothing is left if one is not as it was.

    Args:
        path: The bundle.
        folder: The folder, which must not exist.
        only_model: Write the model and its signature only; the other files are verified all the same.

    Raises:
        DataError: It is no bundle, or damaged.
        OSError: A file cannot be read or written, or the folder exists.
    """
    with _opened(path) as (manifest, archive):
        folder.mkdir()
        try:
            wanted = {manifest.model, manifest.signature} if only_model else {part.path for part in manifest.parts}
            if not only_model:
                (folder / MANIFEST).write_bytes(manifest.to_json())
            for part in manifest.parts:
                _unpack_part(archive, part, folder / part.path if part.path in wanted else None)
            archive.expect(_END, "its end")
            if archive.file.read(1):
                raise archive.error("damaged: it goes on after its end")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return manifest


@dataclass(frozen=True)
class _Archive:
    """An open bundle. Every message names it."""

    path: Path
    file: BinaryIO

    def error(self, reason: str) -> DataError:
        return DataError(f"{self.path}: {reason}; copy it again, or build it again")

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        if len(content) < size:
            raise self.error("it is incomplete")
        return content

    def expect(self, expected: bytes, what: str) -> None:
        """Read bytes that can have one value only."""
        if self.file.read(len(expected)) != expected:
            raise self.error(f"damaged or no bundle: {what} is not as its manifest says")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Manifest, _Archive]]:
    with path.open("rb") as file:
        archive = _Archive(path, file)
        header = file.read(_BLOCK)
        size = re.fullmatch(rb"([0-7]{11})\0", header[124:136])
        if size is None or int(size[1], 8) > MAX_MANIFEST_BYTES or header != _header(MANIFEST, int(size[1], 8)):
            raise DataError(f"{path}: not a bundle of clf-deploy; build one with clf-deploy bundle")
        content = archive.read(int(size[1], 8))
        archive.expect(_padding(len(content)), "its manifest")
        try:
            manifest = Manifest.from_json(content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if manifest.to_json() != content:
            raise archive.error("its manifest was changed")
        yield manifest, archive


def _unpack_part(archive: _Archive, part: Part, target: Path | None) -> None:
    """Verify the next file, and write it if there is a target."""
    archive.expect(_header(part.path, part.bytes), part.path)
    digest, left = hashlib.sha256(), part.bytes
    if target is not None:
        target.parent.mkdir(exist_ok=True)
    with target.open("xb") if target is not None else contextlib.nullcontext() as file:
        while left:
            piece = archive.read(min(left, _PIECE_BYTES))
            digest.update(piece)
            left -= len(piece)
            if file is not None:
                file.write(piece)
    if digest.hexdigest() != part.sha256:
        raise archive.error(f"damaged: the content of {part.path} does not match its SHA-256")
    archive.expect(_padding(part.bytes), part.path)
    if target is not None:
        target.chmod(_mode(part.path))


def _header(path: str, size: int) -> bytes:
    """Return the only header that a file of a bundle can have."""
    member = tarfile.TarInfo(f"{FOLDER}/{path}")
    member.size, member.mtime, member.mode = size, _TIME, _mode(path)
    return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def _mode(path: str) -> int:
    return 0o755 if path in _EXECUTABLE else 0o644


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
