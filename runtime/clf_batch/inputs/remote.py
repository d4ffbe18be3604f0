"""Files behind a URL such as `s3://bucket/key`, through fsspec: listing, reading, and what can go wrong."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO, cast

from clf_runtime.errors import ImageError, MachineError
from clf_runtime.image_files import SUFFIXES

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_PATTERN = re.compile(r"[*?[]")
_WITHOUT_PATTERNS = ("http://", "https://")  # there ? begins the query


def is_url(name: str) -> bool:
    """Return whether a name is a URL, and not a path."""
    return _URL.match(name) is not None


def open_url(url: str) -> BinaryIO:
    """Open a file for reading at any position. Raises MachineError."""
    with reporting_errors(url):
        files, path = file_system(url)
        return cast(BinaryIO, files.open(path, "rb"))


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it. Credentials are those of its own configuration.

    Raises:
        MachineError: The package for this kind of URL is not installed, or the URL cannot be used.
    """
    protocol, _, _ = url.partition("://")
    with reporting_errors(url):
        files = _file_system(protocol.lower(), url if protocol.lower().startswith("http") else "")
        return files, files._strip_protocol(url)


@functools.lru_cache(maxsize=16)
def _file_system(protocol: str, url: str) -> Any:
    import fsspec

    # Without a cache of listings: one of 10⁸ names does not fit into memory.
    return fsspec.filesystem(protocol, use_listings_cache=False)


@contextlib.contextmanager
def reporting_errors(url: str) -> Iterator[None]:
    """Raise MachineError for whatever a file system raises, in one line that names the URL."""
    try:
        yield
    except (MachineError, MemoryError):
        raise
    except Exception as error:  # each file system has exceptions of its own, without a common base
        raise MachineError(f"{url}: {describe_error(error)}") from None


def describe_error(error: BaseException) -> str:
    """Return what a file system says of an error, in one line, with what to do if that is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such file, folder or bucket; check the name"
    if isinstance(error, ImportError):
        package = re.search(r"[Ii]nstall ['\"`]?([\w-]+)", text)
        return f"{text}; pip install {package[1]}" if package else text
    if isinstance(error, PermissionError) or "credentials" in text.lower():
        return f"access denied ({text}); check the credentials and the permissions on the bucket"
    return f"{text}; check the address and the network"


def image_error(error: BaseException) -> ImageError:
    """Return the ImageError for a file that a file system could not read."""
    if isinstance(error, FileNotFoundError):
        return ImageError("not-found", "no file has this name")
    if isinstance(error, PermissionError):
        return ImageError("no-permission", "access denied")
    if isinstance(error, IsADirectoryError):
        return ImageError("not-a-file", "a folder, not a file")
    return ImageError("unreadable", " ".join(str(error).split()) or type(error).__name__)


def find_files(url: str, recursive: bool) -> Iterator[str]:
    """Yield the URLs that a URL names: a file, the images in a folder, or what matches a pattern, in a fixed order.

    A listing is read page by page while the names are used.

    Raises:
        MachineError: The listing fails.
    """
    files, path = file_system(url)
    if _PATTERN.search(path) and not url.startswith(_WITHOUT_PATTERNS):
        yield from _find_matches(files, url, path)
        return
    with reporting_errors(url):
        is_file = not url.endswith("/") and files.isfile(path)
    if is_file:
        yield url
        return
    for found in _walk(files, url, path.rstrip("/"), recursive):
        name = found.rpartition("/")[2]
        if _suffix(name) in SUFFIXES and not name.startswith("."):
            yield cast(str, files.unstrip_protocol(found))


def _find_matches(files: Any, url: str, path: str) -> Iterator[str]:
    from fsspec.utils import glob_translate

    first = cast(re.Match[str], _PATTERN.search(path)).start()
    root = path[:first].rpartition("/")[0]
    matches = re.compile(glob_translate(path)).match
    for found in _walk(files, url, root, recursive="**" in path or "/" in path[first:]):
        if matches(found):
            yield cast(str, files.unstrip_protocol(found))


def _suffix(name: str) -> str:
    return name[name.rfind(".") :].lower() if "." in name else ""


def _walk(files: Any, url: str, root: str, recursive: bool) -> Iterator[str]:
    """Yield the paths of the files in a folder: page by page on S3, elsewhere folder by folder."""
    bucket, _, prefix = root.partition("/")
    if hasattr(files, "_iterdir") and bucket:
        pages = files._iterdir(bucket, delimiter="" if recursive else "/", prefix=prefix and f"{prefix}/")
        entries = _iterate(files, url, pages)
    else:
        entries = _walk_folders(files, url, root, recursive)
    for entry in entries:
        if entry["type"] == "file" and not entry["name"].endswith("/"):
            yield entry["name"]


def _iterate(files: Any, url: str, entries: AsyncIterator[Any]) -> Iterator[Any]:
    from fsspec.asyn import sync

    async def take(count: int) -> list[Any]:
        taken = []
        async for entry in entries:
            taken.append(entry)
            if len(taken) == count:
                break
        return taken

    while True:
        with reporting_errors(url):
            taken = sync(files.loop, take, _ENTRIES_AT_ONCE)
        yield from taken
        if len(taken) < _ENTRIES_AT_ONCE:
            return


_ENTRIES_AT_ONCE = 1000  # a page of S3


def _walk_folders(files: Any, url: str, root: str, recursive: bool) -> Iterator[Any]:
    folders = [root]
    while folders:
        with reporting_errors(url):
            entries = sorted(files.ls(folders.pop(), detail=True), key=lambda entry: str(entry["name"]))
        yield from entries
        if recursive:
            folders += [entry["name"] for entry in reversed(entries) if entry["type"] == "directory"]
