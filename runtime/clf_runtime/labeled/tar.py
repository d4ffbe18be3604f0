"""The members of a tar archive, one after the other: names that stay inside, and damage that is noticed."""

from __future__ import annotations

import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from clf_runtime.errors import DataError
from clf_runtime.labeled.images import raise_if_outside

# What damage makes the modules of the standard library raise, which trust the numbers in a header.
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, struct.error),
    *(ValueError, IndexError, OverflowError, NotImplementedError),
)


def read_tar(path: Path, file: IO[bytes]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the safe name and the header of each member. Whoever takes them may read in the file meanwhile.

    Raises:
        DataError: A member leads outside.
        DAMAGE: The archive is damaged.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            tar.members = []  # type: ignore[attr-defined,unused-ignore] # it would keep every header in memory
            yield safe_name(path, info.name), info
        _raise_if_incomplete(file, tar)


def raise_if_sparse(path: Path, name: str, info: tarfile.TarInfo) -> None:
    """Raise DataError if the bytes of a file do not lie in the archive as they are."""
    if info.sparse is not None:
        raise DataError(f"{path}: {name} is stored as a sparse file; pack the archive without --sparse")


def damage_error(path: Path, error: BaseException) -> DataError:
    """Return the error of a damaged archive, for one of DAMAGE."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path}: the archive is damaged ({reason}); copy or pack it again")


def safe_name(path: Path, name: str) -> str:
    """Return the name of a member without ./ at its start and / at its end. Raises DataError if it leads outside."""
    name = name.replace("\\", "/")
    raise_if_outside(name, str(path))
    normal = posixpath.normpath(name)
    return "" if normal == "." else normal


def _raise_if_incomplete(file: IO[bytes], tar: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError unless the zeros follow that end an archive.

    tarfile ends without an error at a damaged header, and where the rest of the members is missing.
    """
    file.seek(tar.offset)
    rest = file.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends at byte {tar.offset + len(rest):,} without an end mark")
    if any(rest):
        raise tarfile.ReadError(f"no valid member at byte {tar.offset:,}")
