"""Open a tar or zip archive: find its image files without unpacking them.

A member whose name leads outside of the archive, or a link that does, makes the archive invalid. Sizes are bounded: of
each image, and for a compressed tar archive, which is decompressed in memory, of everything.
"""

from __future__ import annotations

import importlib
import io
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from clf_runtime.errors import DataError, ImageError, MachineError
from clf_runtime.labeled.members import Archive, Member
from clf_runtime.labeled.tar import DAMAGE, damage_error, raise_if_sparse, read_tar, safe_name
from clf_runtime.labeled.tree import is_image_name
from clf_runtime.machine import usable_memory

# Suffix → the module that decompresses it. Some builds of Python lack the last two.
_COMPRESSED: Mapping[str, str] = {
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.bz2": "bz2",
    ".tbz2": "bz2",
    ".tar.xz": "lzma",
    ".txz": "lzma",
}
SUFFIXES = (".zip", ".tar", *_COMPRESSED)

# The other half is for the training itself and for the system.
_MEMORY_SHARE = 0.5
_CHUNK_BYTES = 1 << 20
_MAX_LINKS = 16  # in a row
_MAX_LINK_BYTES = 4096

_ENCRYPTED = 1  # in the flags of a zip archive's member
_ZIP_HEADER_BYTES = 30


@dataclass
class Contents:
    """What an archive has in it.

    Attributes:
        members: Name → image file.
        folders: The names of its folders.
        links: Name → the name that a link to an image leads to.
        content: The decompressed archive, if it is compressed as a whole.
    """

    members: dict[str, Member] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


def is_archive_name(name: str) -> bool:
    """Return whether a name has the suffix of an archive that can be read."""
    return name.lower().endswith(SUFFIXES)


def open_archive(path: Path) -> tuple[Archive, list[str]]:
    """Find the image files of an archive, and the names of its folders.

    Raises:
        DataError: It is damaged, encrypted, or a member leads outside.
        MachineError: It is compressed as a whole, and too large for the memory.
        OSError: It cannot be read.
    """
    with path.open("rb"):  # an OSError of this is the machine's, one of the modules below is damage
        pass
    try:
        contents = _read_zip(path) if path.name.lower().endswith(".zip") else _read_tar(path)
    except DataError:
        raise  # also a ValueError
    except DAMAGE as error:
        raise damage_error(path, error) from None
    _resolve_links(path, contents)
    return Archive(path, contents.members, contents.content), contents.folders


def _read_tar(path: Path) -> Contents:
    contents = Contents()
    module = next((module for suffix, module in _COMPRESSED.items() if path.name.lower().endswith(suffix)), None)
    if module is not None:
        contents.content = _decompress(path, module)
    with _open_tar(path, contents.content) as file:
        for name, info in read_tar(path, file):
            if info.isdir():
                contents.folders += filter(None, [name])  # ./ has no name
            elif info.issym() or info.islnk():
                target = posixpath.join(posixpath.dirname(name), info.linkname) if info.issym() else info.linkname
                contents.links[name] = _link_target(path, name, target)
            elif info.isreg() and is_image_name(name):
                raise_if_sparse(path, name, info)
                contents.members[name] = Member(str(path), name, "tar", info.offset_data, info.size)
    return contents


def _open_tar(path: Path, content: bytes | None) -> IO[bytes]:
    return path.open("rb") if content is None else io.BytesIO(content)


def _decompress(path: Path, module_name: str) -> bytes:
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        raise MachineError(f"{path}: this Python lacks the module {module_name}; decompress it to .tar") from None
    limit = int(_MEMORY_SHARE * usable_memory())
    chunks, size = [], 0
    try:
        with module.open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > limit:
                    raise MachineError(
                        f"{path}: a compressed tar archive is read into memory, and this one has more than the "
                        f"{limit / 1e9:.1f} GB that are available for it; decompress it to .tar, which is read in place"
                    )
                chunks.append(chunk)
    except getattr(module, "LZMAError", EOFError) as error:
        raise tarfile.ReadError(str(error)) from None
    return b"".join(chunks)


def _read_zip(path: Path) -> Contents:
    contents = Contents()
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _raise_if_overlapping(infos)
        for info in infos:
            name = safe_name(path, info.filename)
            if info.is_dir():
                contents.folders += filter(None, [name])
            elif is_image_name(name):
                contents.members[name] = member = _zip_member(path, name, info)
                if stat.S_ISLNK(info.external_attr >> 16):
                    del contents.members[name]
                    contents.links[name] = _link_target(path, name, _zip_link(name, member))
    return contents


def _zip_member(path: Path, name: str, info: zipfile.ZipInfo) -> Member:
    if info.flag_bits & _ENCRYPTED:
        raise DataError(f"{path}: {name} is encrypted; pack the archive without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {name} has compression method {info.compress_type}; expected deflate or none")
    is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
    member = Member(str(path), name, "zip", info.header_offset, info.file_size, info.compress_size)
    return replace(member, is_deflated=is_deflated, crc=info.CRC)


def _zip_link(name: str, member: Member) -> str:
    if member.size_bytes > _MAX_LINK_BYTES:
        raise zipfile.BadZipFile(f"{name} is a link of {member.size_bytes:,} bytes")
    try:
        return posixpath.join(posixpath.dirname(name), member.read().decode("utf-8", "surrogateescape"))
    except ImageError as error:
        raise zipfile.BadZipFile(f"{name}: {error}") from None


def _raise_if_overlapping(infos: list[zipfile.ZipInfo]) -> None:
    """Raise BadZipFile if two members share bytes, as in a zip bomb."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise zipfile.BadZipFile(f"{info.filename} overlaps another member, as in a zip bomb")
        end = info.header_offset + _ZIP_HEADER_BYTES + info.compress_size


def _link_target(path: Path, name: str, target: str) -> str:
    target = posixpath.normpath(target.replace("\\", "/"))
    if target.startswith(("/", "../")) or target == "..":
        raise DataError(f"{path}: the link {name} leads outside of the archive, to {target}; pack the image itself")
    return target


def _resolve_links(path: Path, contents: Contents) -> None:
    """Make the links to images members of their own."""
    for name in filter(is_image_name, contents.links):
        target = name
        for _ in range(_MAX_LINKS):
            if target not in contents.links:
                break
            target = contents.links[target]
        if target not in contents.members:
            raise DataError(f"{path}: the link {name} leads to {target}, which is not in the archive; pack it, too")
        contents.members[name] = replace(contents.members[target], name=name)
