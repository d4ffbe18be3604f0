"""What a store contains, for people and for fleet tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from clf_runtime import __version__, onnx_file
from clf_runtime.errors import InvalidModelError, escape
from clf_runtime.signature import signature_path
from clf_runtime.store.state import Probation, State
from clf_runtime.store.store import Store


@dataclass(frozen=True)
class VersionStatus:
    """One version.

    Attributes:
        version: Its name.
        role: `current`, `previous`, or nothing.
        sha256: The digest of the file; None if the file is damaged.
        serial: Its serial number.
        is_signed: Whether there is a signature, verified or not.
        problem: What is wrong with the file, or why it failed here; otherwise empty.
    """

    version: str
    role: str
    sha256: str | None
    serial: int | None
    is_signed: bool
    problem: str


@dataclass(frozen=True)
class StoreStatus:
    """A store."""

    store: str
    clf_edge: str
    current: str | None
    previous: str | None
    highest_serial: int | None
    probation: Probation | None
    versions: Sequence[VersionStatus]

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        rows = [("version", "role", "serial", "signed", "sha256", "")]
        for row in self.versions:
            serial = "-" if row.serial is None else str(row.serial)
            signed = "yes" if row.is_signed else "no"
            rows.append((row.version, row.role or "-", serial, signed, (row.sha256 or "-")[:12], escape(row.problem)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if self.probation is not None and self.probation.version == self.current:
            lines.append(f"on probation for {self.probation.seconds:g} s; falls back to {self.probation.fallback}")
        return "\n".join(lines)


def describe(store: Store) -> StoreStatus:
    """Read a store. Nothing is locked or written. Raises DataError, OSError."""
    state = State.read(store.folder)
    current, previous = store.current, store.previous(state)
    roles = {previous: "previous", current: "current"}
    return StoreStatus(
        store=str(store.folder),
        clf_edge=__version__,
        current=current,
        previous=previous,
        highest_serial=state.highest_serial,
        probation=state.probation,
        versions=[_describe_version(name, roles.get(name, ""), store, state) for name in store.versions],
    )


def _describe_version(name: str, role: str, store: Store, state: State) -> VersionStatus:
    path = store.path(name)
    is_signed, failure = signature_path(path).exists(), state.failed.get(name, "")
    try:
        file = onnx_file.read(path)
    except InvalidModelError as error:
        return VersionStatus(name, role, None, None, is_signed, str(error))
    return VersionStatus(name, role, file.sha256, file.spec.serial, is_signed, failure and f"failed here: {failure}")
