"""From units to images, on a worker: local files are left to the runtime, anything else is read as bytes."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from clf_batch.ahead import read_ahead
from clf_batch.inputs.remote import file_system, image_error, is_url
from clf_batch.inputs.tables import open_file
from clf_batch.inputs.units import ImageFile, TableRows, TarArchive, Unit, Unusable
from clf_runtime.errors import ClfError, DataError, ImageError, MachineError
from clf_runtime.image_files import SUFFIXES, image_error_from_os_error
from clf_runtime.labeled.parquet import open_parquet
from clf_runtime.sources import ImageSource

_OBJECTS_AT_ONCE = 32
_CHUNKS_AHEAD = 2
# Beside the attempts of the file system itself.
_WAITS_S = (0.5, 2.0, 8.0)
# Fewer than this many images that cannot be read are bad luck; this many in sequence mean that the store has failed.
_FAILED_STORE = 16
_ROWS_AT_ONCE = 64


def read_images(units: Sequence[Unit], folder: str, max_bytes: int) -> Iterator[ImageSource]:
    """Yield the images of units in their order, each with its content or with what is wrong with it.

    Args:
        units: The units of a shard.
        folder: Where relative paths start.
        max_bytes: The largest file that is read into memory.

    Raises:
        MachineError: An object store fails altogether, so that the shard had better be read later.
    """
    for is_remote, group in groupby(units, _is_remote):
        if is_remote:
            yield from _read_urls([unit.key for unit in group], max_bytes)
        else:
            for unit in group:
                yield from _read_unit(unit, folder, max_bytes)


def _is_remote(unit: Unit) -> bool:
    return isinstance(unit, ImageFile) and is_url(unit.name)


def _read_unit(unit: Unit, folder: str, max_bytes: int) -> Iterator[ImageSource]:
    if isinstance(unit, Unusable):
        yield ImageSource(unit.name, ImageError(unit.kind, unit.message))
    elif isinstance(unit, ImageFile):
        # A Path, so that the pipeline forks no processes: Ray's threads would not survive that.
        yield ImageSource(unit.name, Path(folder, unit.name))
    else:
        name = unit.name if isinstance(unit, TarArchive) else unit.table
        place = name if is_url(name) else os.path.join(folder, name)  # noqa: PTH118 (a URL is no Path)
        read = _read_tar(unit, place, max_bytes) if isinstance(unit, TarArchive) else _read_rows(unit, place)
        try:
            yield from read
        except OSError as error:
            yield ImageSource(name, image_error_from_os_error(error))
        except DataError as error:
            yield ImageSource(name, ImageError("damaged", " ".join(str(error).split())))


def _read_urls(urls: Sequence[str], max_bytes: int) -> Iterator[ImageSource]:
    names = iter(urls)
    chunks = iter(lambda: list(islice(names, _OBJECTS_AT_ONCE)), [])
    failed = 0
    for chunk in read_ahead((_fetch(chunk, max_bytes) for chunk in chunks), _CHUNKS_AHEAD):
        for source in chunk:
            failed = failed + 1 if _may_succeed_later(source.content) else 0
            if failed == _FAILED_STORE:
                raise MachineError(
                    f"{source.name}: the store failed for {failed} files in sequence ({source.content!s}); --resume "
                    "continues when it works again"
                )
        yield from chunk


def _fetch(urls: Sequence[str], max_bytes: int) -> list[ImageSource]:
    """Return the bytes of files, all of them at once, or what is wrong with each. Failures are tried again."""
    contents = _fetch_once(urls, max_bytes)
    for wait_s in _WAITS_S:
        again = [url for url in urls if _may_succeed_later(contents[url])]
        if not again:
            break
        time.sleep(wait_s)
        contents |= _fetch_once(again, max_bytes)
    return [ImageSource(url, contents[url]) for url in urls]


def _fetch_once(urls: Sequence[str], max_bytes: int) -> dict[str, bytes | ImageError]:
    contents: dict[str, bytes | ImageError] = {}
    for _, group in groupby(sorted(urls), lambda url: url.partition("://")[0]):
        same = list(dict.fromkeys(group))
        try:
            files, _ = file_system(same[0])
            paths = [files._strip_protocol(url) for url in same]
            # A range, so that no object of a wrong kind fills the memory, and no request is spent on its size.
            fetched = files.cat_ranges(paths, [0] * len(paths), [max_bytes] * len(paths), on_error="return")
        except ClfError as error:
            fetched = [error] * len(same)
        contents |= {url: _content(value, max_bytes) for url, value in zip(same, fetched, strict=True)}
    return contents


def _content(value: bytes | BaseException, max_bytes: int) -> bytes | ImageError:
    if isinstance(value, BaseException):
        # What S3 answers for a range of an object without content.
        is_empty = "InvalidRange" in str(value) or "not satisfiable" in str(value)
        return ImageError("empty", "the file has zero bytes") if is_empty else image_error(value)
    if not value:
        return ImageError("empty", "the file has zero bytes")
    if len(value) >= max_bytes:
        return ImageError("too-large", f"more than {max_bytes:,} bytes; raise --max-image-bytes")
    return value


def _may_succeed_later(content: object) -> bool:
    return isinstance(content, ImageError) and content.kind == "unreadable"


def _read_tar(archive: TarArchive, place: str, max_bytes: int) -> Iterator[ImageSource]:
    """Yield the images in a tar archive, read from its beginning to its end."""
    try:
        with open_file(place) as file, tarfile.open(fileobj=file, mode="r|*") as members:
            for member in members:
                name = f"{archive.name}/{member.name}"
                if not member.isfile() or Path(member.name).suffix.lower() not in SUFFIXES:
                    continue
                if member.size >= max_bytes:
                    yield ImageSource(name, ImageError("too-large", f"{member.size:,} bytes; raise --max-image-bytes"))
                    continue
                content = members.extractfile(member)
                yield ImageSource(name, (content.read() if content else b"") or _empty())
            # tarfile ends without an error where the rest of the members is missing.
            stream: Any = members.fileobj
            if stream.tell() == members.offset:
                raise tarfile.ReadError(f"it ends at byte {members.offset:,} without an end mark")
    except (tarfile.TarError, EOFError) as error:
        yield ImageSource(archive.name, ImageError("damaged", f"no complete tar archive ({error})"))


def _empty() -> ImageError:
    return ImageError("empty", "the file has zero bytes")


def _read_rows(unit: TableRows, place: str) -> Iterator[ImageSource]:
    """Yield the images of a row group."""
    row = unit.first
    columns = [unit.column, *([unit.name_column] if unit.name_column else [])]
    with open_file(place) as file, open_parquet(unit.table, file) as content:
        batches = content.iter_batches(_ROWS_AT_ONCE, row_groups=[unit.row_group], columns=columns)
        for cells in chain.from_iterable(batch.to_pylist() for batch in batches):
            value: Any = cells[unit.column]
            name = cells.get(unit.name_column)
            if isinstance(value, dict):  # the images of the library datasets: {"bytes": …, "path": …}
                name, value = name or value.get("path"), value.get("bytes")
            yield ImageSource(str(name or f"{unit.table}#row {row + 1}"), value or _empty())
            row += 1
