"""The wheel of the clf-edge that is installed here, from a wheel or from a checkout, without a build backend."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from clf_runtime.errors import MachineError

DISTRIBUTION = "clf-edge"

_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that zip can say
_WHEEL = "Wheel-Version: 1.0\nGenerator: clf-deploy\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_NAME = DISTRIBUTION.replace("-", "_")


def write_own_wheel(folder: Path) -> Path:
    """Write the wheel into a folder, and return its path. The same files always give the same bytes.

    Raises:
        MachineError: clf-edge is on the path, but not installed.
        OSError: A file cannot be read or written.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise MachineError(f"{DISTRIBUTION} is not installed here, only imported; install it with pip or uv") from None
    info = f"{_NAME}-{distribution.version}.dist-info"
    contents = dict(sorted((*_package_files(distribution), *_metadata_files(distribution, info))))
    record = f"{info}/RECORD"
    lines = [f"{name},sha256={_encoded_digest(content)},{len(content)}\n" for name, content in contents.items()]
    contents[record] = "".join((*lines, f"{record},,\n")).encode()
    path = folder / f"{_NAME}-{distribution.version}-py3-none-any.whl"
    # Stored: what zlib makes of a file depends on its version, and the wheel is small.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            member = zipfile.ZipInfo(name, _TIME)
            member.external_attr, member.create_system = 0o100644 << 16, 3
            archive.writestr(member, content)
    return path


def extras() -> frozenset[str]:
    """Return the extras of clf-edge."""
    return frozenset(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ())


def _package_files(distribution: metadata.Distribution) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of the import packages. Each package has a command."""
    commands = distribution.entry_points.select(group="console_scripts")
    for package in sorted({command.module.partition(".")[0] for command in commands}):
        found = find_spec(package)
        for location in (found.submodule_search_locations or ()) if found is not None else ():
            root = Path(location)
            for path in root.rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _metadata_files(distribution: metadata.Distribution, info: str) -> Iterator[tuple[str, bytes]]:
    """Yield what describes the distribution, without what describes its installation here."""
    for name in ("METADATA", "entry_points.txt"):
        yield f"{info}/{name}", (distribution.read_text(name) or "").encode()
    yield f"{info}/WHEEL", _WHEEL.encode()
    for file in distribution.files or ():
        if file.parts[0] == info and file.parts[1:2] == ("licenses",):
            yield file.as_posix(), Path(str(distribution.locate_file(file))).read_bytes()


def _encoded_digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
