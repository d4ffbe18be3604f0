"""Paths and commands as a model records them: without the folders of the machine that it was trained on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

# An option and the absolute path that is its value, on any system: --data=/photos, -d/photos, C:\photos.
_WITH_PATH = re.compile(r"(--[\w-]+=|-\w)?(/.*|[A-Za-z]:[\\/].*)", re.DOTALL)


def portable_path(path: str) -> str:
    """Return a path for others to see: a relative one as it was typed, an absolute one relative to the current folder.

    Outside the current folder, only the last component is left. Bytes that are not UTF-8 become `\\xNN`.
    """
    if _WITH_PATH.fullmatch(path):
        try:
            path = Path(path).relative_to(Path.cwd()).as_posix()
        except ValueError:
            path = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def portable_member(path: str, data: str) -> str:
    """Return the path of an image for others to see: with the portable path of the data that it belongs to."""
    from clf_runtime.labeled.shard_files import fixed_folder  # with numpy, for which --help would wait

    for root in (data.rstrip("\\/"), str(Path(data).parent), str(fixed_folder(Path(data)))):
        if path.startswith(root) and path[len(root) :][:1] in ("/", "\\"):
            return f"{portable_path(root)}{path[len(root) :]}"
    return portable_path(path)


def portable_command(program: str, arguments: Sequence[str]) -> str:
    """Return a command line with portable paths."""
    return shlex.join([program, *map(_make_portable, arguments)])


def leads_to(recorded: str | None, path: str) -> bool:
    """Return whether a recorded path still leads where the typed one does, from the current folder."""
    return recorded is not None and Path(recorded).resolve() == Path(path).resolve()


def _make_portable(argument: str) -> str:
    match = _WITH_PATH.fullmatch(argument)
    return portable_path(argument) if match is None else f"{match[1] or ''}{portable_path(match[2])}"
