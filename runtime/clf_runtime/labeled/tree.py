"""A tree of image files: a folder on disk, or the names in an archive."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

from clf_runtime.image_files import SUFFIXES
from clf_runtime.sources import is_folder


class ImageTree(ABC):
    """Folders and image files, by names relative to the root with / on every system; hidden ones do not exist.

    The root itself is the empty name.
    """

    @abstractmethod
    def subfolders(self, folder: str) -> list[str]:
        """Return the last names of the folders directly in `folder`, sorted by code point."""

    @abstractmethod
    def images(self, folder: str) -> list[str]:
        """Return the names of the image files at any depth below `folder`, sorted by code point."""

    def has_direct_images(self, folder: str) -> bool:
        """Return whether an image file lies in `folder` itself."""
        return any("/" not in name[len(prefix(folder)) :] for name in self.images(folder))


class FolderTree(ImageTree):
    """A folder on disk. Links are followed, to files and to folders, but no folder is entered twice below another."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._broken_links: set[str] = set()
        self._images: dict[str, list[str]] = {}  # by folder

    @property
    def broken_links(self) -> list[str]:
        """The links that lead nowhere or in a circle, in those folders that were searched so far."""
        return sorted(self._broken_links)

    def subfolders(self, folder: str) -> list[str]:
        """See ImageTree; a link to the folder or to one above it is left out, because it has every class in it."""
        path = self._root / folder
        here = path.resolve()
        names = []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    if not (entry.is_symlink() and here.is_relative_to(Path(entry.path).resolve())):
                        names.append(entry.name)
                elif _is_broken_link(entry):
                    self._broken_links.add(prefix(folder) + entry.name)
        return sorted(names)

    def images(self, folder: str) -> list[str]:
        """See ImageTree."""
        if folder not in self._images:
            start = prefix(folder)
            self._images[folder] = sorted(start + name for name in self._walk(str(self._root / folder), start))
        return self._images[folder]

    def _walk(self, top: str, prefix_of_top: str) -> Iterator[str]:
        # Not Path.rglob: it asks the system about each file again, which the folder's listing has already answered.
        # A link to a folder above this one would bring in the images of every other class.
        above = (*Path(top).resolve().parents, *([self._root] if prefix_of_top else []))
        entered = {(status.st_dev, status.st_ino) for status in map(os.stat, above)}
        folders: list[tuple[str, str]] = [(top, "")]
        linked: list[tuple[str, str]] = []
        while folders or linked:
            # Linked folders last and in a fixed order, so that a loop changes no name.
            linked.sort(reverse=True)
            path, inside = folders.pop() if folders else linked.pop()
            status = os.stat(path)  # noqa: PTH116 (for each folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if is_folder(entry):
                        (linked if entry.is_symlink() else folders).append((entry.path, f"{inside}{entry.name}/"))
                    elif _is_broken_link(entry):
                        self._broken_links.add(prefix_of_top + inside + entry.name)
                    elif is_image_name(entry.name) and entry.is_file():
                        yield inside + entry.name


class NameTree(ImageTree):
    """The names in an archive."""

    def __init__(self, names: Iterable[str]) -> None:
        """Sort the names of image files, and of folders, which end with /."""
        self._folders: dict[str, set[str]] = {"": set()}
        self._images: list[str] = []
        for name in sorted(names):
            parts = name.split("/")
            if any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX":
                continue
            for depth in range(1, len(parts)):
                self._folders.setdefault("/".join(parts[:depth]), set())
                self._folders["/".join(parts[: depth - 1])].add(parts[depth - 1])
            if is_image_name(name):
                self._images.append(name)

    def subfolders(self, folder: str) -> list[str]:
        """See ImageTree."""
        return sorted(self._folders[folder])

    def images(self, folder: str) -> list[str]:
        """See ImageTree."""
        if not folder:
            return self._images
        # "0" follows "/".
        return self._images[bisect_left(self._images, f"{folder}/") : bisect_left(self._images, f"{folder}0")]


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry that is no folder is a link that leads nowhere or in a circle."""
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 (for each link)


def prefix(folder: str) -> str:
    """Return what the names below a folder start with."""
    return f"{folder}/" if folder else ""


def is_image_name(name: str) -> bool:
    """Return whether a name has the suffix of an image format."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (ten times faster, for each file)
