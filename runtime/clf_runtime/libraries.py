"""Which shared libraries a library needs, and which of them this machine does not have.

onnxruntime loads the library of an execution provider when a session asks for the provider. If a library that it needs
is missing, onnxruntime writes to its process-wide log and uses the CPU, so this is checked beforehand. On Linux only.

Source of the layout of a file: https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.dynamic.html
"""

from __future__ import annotations

import ctypes
import re
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_HEADER_BYTES = 64
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 15, 29


class _Segment(NamedTuple):
    """An entry of the program header table, up to the last field that is read."""

    kind: int
    flags: int
    offset: int
    address: int
    physical_address: int
    size_bytes: int


def missing_dependencies(library: Path) -> list[str]:
    """Return the names of the libraries that `library` needs and that are not on this machine.

    The others are loaded, as onnxruntime would load them. A file that does not exist or that is not a library for Linux
    has no known dependencies.
    """
    try:
        with library.open("rb") as file:
            needed, folders = _read_dynamic_section(file)
    except (OSError, ValueError):
        return []
    search = [library.parent, *(Path(folder.replace("$ORIGIN", str(library.parent))) for folder in folders)]
    missing = [load(name) for name in needed if not any((folder / name).exists() for folder in search)]
    return list(dict.fromkeys(name for name in missing if name is not None))


def load(name: str) -> str | None:
    """Load a library. Return None, or the name of the file that is missing: the library or one that it needs."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        missing = re.match(r"(\S+): cannot open shared object file", str(error))
        return missing.group(1) if missing else None
    return None


def _read_dynamic_section(file: BinaryIO) -> tuple[list[str], list[str]]:
    """Return the names of the needed libraries, and the folders that the file adds to the search path.

    Raises ValueError if the file is not an ELF file of 64 bits, little endian.
    """
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_ELF64_LITTLE_ENDIAN):
        raise ValueError("not an ELF file of 64 bits, little endian")
    (table_offset,) = struct.unpack_from("<Q", header, 32)
    entry_bytes, entries = struct.unpack_from("<HH", header, 54)
    table = _read_at(file, table_offset, entry_bytes * entries)
    segments = [_Segment(*struct.unpack_from("<IIQQQQ", table, entry_bytes * n)) for n in range(entries)]
    dynamic = next(segment for segment in segments if segment.kind == _PT_DYNAMIC)
    tags = list(struct.iter_unpack("<QQ", _read_at(file, dynamic.offset, dynamic.size_bytes)))
    values = dict(tags)
    # The table of strings is named by its address in memory.
    loaded = next(
        segment
        for segment in segments
        if segment.kind == _PT_LOAD and 0 <= values[_DT_STRTAB] - segment.address < segment.size_bytes
    )
    strings = _read_at(file, loaded.offset + values[_DT_STRTAB] - loaded.address, values[_DT_STRSZ])

    def texts(*wanted: int) -> list[str]:
        return [strings[at : strings.index(b"\0", at)].decode() for tag, at in tags if tag in wanted]

    return texts(_DT_NEEDED), ":".join(texts(_DT_RPATH, _DT_RUNPATH)).split(":")


def _read_at(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(size_bytes)
