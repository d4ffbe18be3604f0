"""Image files inside a tar or zip archive, read in place."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from clf_runtime.errors import ImageError
from clf_runtime.image_files import image_error_from_os_error

# The largest image that preprocessing accepts has 256 MiB of pixels; a file of twice that is no image of ours.
MAX_MEMBER_BYTES = 512 << 20

# The header in front of each member of a zip archive (APPNOTE.TXT 6.3.10, section 4.3.7), up to the name.
_ZIP_HEADER = struct.Struct("<4s22xHH")
_ZIP_SIGNATURE = b"PK\x03\x04"


@dataclass(frozen=True)
class FileVersion:
    """What a file was at some time, to notice that it was replaced or written to since."""

    size_bytes: int
    mtime_ns: int


def find_version(file: IO[bytes]) -> FileVersion:
    """Return what an open file is now. Raises OSError."""
    status = os.fstat(file.fileno())
    return FileVersion(status.st_size, status.st_mtime_ns)


def raise_if_changed(file: IO[bytes], version: FileVersion | None) -> None:
    """Raise ImageError if an open file is not what it was. Raises OSError."""
    if version is not None and find_version(file) != version:
        raise ImageError("damaged", "the file around it changed after it was indexed; start again")


@dataclass(frozen=True)
class Member:
    """One image file in an archive: enough to read it in any process, without opening the archive's index again.

    Attributes:
        archive: The path of the archive.
        name: The name in it.
        kind: `"tar"`: the bytes lie at `offset`. `"zip"`: a header lies there, followed by the bytes, compressed by
            deflate if `is_deflated`. `"memory"`: `content` has the bytes.
        offset: Where it starts in the archive.
        size_bytes: The size of the image file.
        stored_bytes: The size in the archive.
        is_deflated: Whether it is compressed.
        crc: The CRC-32 that a zip archive states.
        content: The bytes, if they are in memory already.
        version: What the archive was when it was indexed; None if it is not compared.
    """

    archive: str
    name: str
    kind: Literal["tar", "zip", "memory"]
    offset: int
    size_bytes: int
    stored_bytes: int = 0
    is_deflated: bool = False
    crc: int = 0
    content: bytes = b""
    version: FileVersion | None = None

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            ImageError: The archive cannot be read there, or the member is damaged.
        """
        if self.size_bytes > MAX_MEMBER_BYTES:
            raise ImageError("too-large", f"{self.size_bytes:,} bytes, expected at most {MAX_MEMBER_BYTES:,}")
        if not self.size_bytes:
            raise ImageError("empty", "the file has zero bytes")
        if self.kind == "memory":
            return self.content
        try:
            with open(self.archive, "rb") as file:  # noqa: PTH123 (for each image)
                raise_if_changed(file, self.version)
                content = _read_stored(file, self)
        except OSError as error:
            raise image_error_from_os_error(error) from None
        if len(content) != (self.size_bytes if self.kind == "tar" else self.stored_bytes):
            raise ImageError("damaged", "the archive ends before the image does")
        return content if self.kind == "tar" else _extract(content, self)


@dataclass(frozen=True)
class Archive:
    """The image files of an archive.

    Attributes:
        path: The archive.
        members: Name → where its bytes are.
        content: The decompressed archive, if it is compressed as a whole; its members' offsets point into it.
    """

    path: Path
    members: Mapping[str, Member]
    content: bytes | None = None

    def member(self, name: str) -> Member:
        """Return a member by its name, with its bytes if they are only here."""
        member = self.members[name]
        if self.content is None:
            return member
        content = self.content[member.offset : member.offset + member.size_bytes]
        return replace(member, kind="memory", content=content)


def _read_stored(file: IO[bytes], member: Member) -> bytes:
    file.seek(member.offset)
    if member.kind == "tar":
        return file.read(member.size_bytes)
    header = file.read(_ZIP_HEADER.size)
    if len(header) < _ZIP_HEADER.size or not header.startswith(_ZIP_SIGNATURE):
        raise ImageError("damaged", "the archive has no member at the place that its index names")
    _, name_bytes, extra_bytes = _ZIP_HEADER.unpack(header)
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    return file.read(member.stored_bytes)


def _extract(content: bytes, member: Member) -> bytes:
    """Decompress a member of a zip archive; never to more than the size that its index states."""
    if member.is_deflated:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size_bytes + 1)
        except zlib.error as error:
            raise ImageError("damaged", f"the archive's data cannot be decompressed ({error})") from None
    if len(content) != member.size_bytes or zlib.crc32(content) != member.crc:
        raise ImageError("damaged", "the content differs from the archive's checksum")
    return content
