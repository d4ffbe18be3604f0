"""From the arguments of the command to units, one after another and in a fixed order; no image is opened."""

from __future__ import annotations

from collections.abc import Iterator

from clf_batch.inputs.remote import find_files, is_url, open_url
from clf_batch.inputs.tables import find_in_csv, find_in_parquet
from clf_batch.inputs.units import ImageFile, TarArchive, Unit, Unusable
from clf_batch.options import InputOptions
from clf_runtime.errors import ImageError, UsageError
from clf_runtime.sources import LIST_PREFIX, STDIN, find_images

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def find_units(options: InputOptions) -> Iterator[Unit]:
    """Yield what the arguments name, while it is found.

    Local names mean the same as for `clf-run`. In addition, a file or URL that ends in .csv, .parquet or .tar is a
    container of images, and a name in a list may be a URL.

    Raises:
        UsageError: An argument is `-`.
        DataError: A table cannot be used.
        MachineError: A URL cannot be listed.
        OSError: A table cannot be read.
    """
    for argument in options.arguments:
        if argument == STDIN:
            raise UsageError("-: an image on stdin is for clf-run; name files, folders, lists, tables or URLs")
        if is_url(argument.removeprefix(LIST_PREFIX)):
            names = _read_list(argument[1:]) if argument.startswith(LIST_PREFIX) else _find(argument, options.recursive)
            for name in names:
                yield from _expand(name, options)
            continue
        for source in find_images([argument], options.recursive):
            if isinstance(source.content, ImageError):
                yield Unusable(source.name, source.content.kind, str(source.content))
            else:
                yield from _expand(source.name, options)


def _find(url: str, recursive: bool) -> Iterator[str | Unusable]:
    found = False
    for name in find_files(url, recursive):
        found = True
        yield name
    if not found:
        hint = "" if recursive else "; use -r to include its subfolders"
        yield Unusable(url, "empty", f"there are no images here{hint}")


def _read_list(url: str) -> Iterator[str | Unusable]:
    with open_url(url) as file:
        for line in file:
            if name := line.rstrip(b"\r\n").decode("utf-8", "surrogateescape"):
                yield name


def _expand(name: str | Unusable, options: InputOptions) -> Iterator[Unit]:
    if isinstance(name, Unusable):
        yield name
        return
    lower = name.lower()
    if lower.endswith(".csv"):
        yield from find_in_csv(name, options.column)
    elif lower.endswith(".parquet"):
        yield from find_in_parquet(name, options.column)
    elif lower.endswith(TAR_SUFFIXES):
        yield TarArchive(name)
    else:
        yield ImageFile(name)
