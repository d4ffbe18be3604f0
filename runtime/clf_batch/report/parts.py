"""The files of a complete run, one after another."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import parquet

from clf_batch.manifest import Manifest, read_manifest
from clf_batch.results import PartRecord
from clf_batch.storage import Storage, open_storage
from clf_runtime.errors import DataError


@dataclass(frozen=True)
class CompleteRun:
    """A run whose results are complete.

    Attributes:
        place: The folder or URL.
        storage: The same, to read from.
        manifest: What it contains.
    """

    place: str
    storage: Storage
    manifest: Manifest

    @classmethod
    def open(cls, place: str) -> CompleteRun:
        """Read the manifest of a run. Raises DataError if it is not complete, MachineError, OSError."""
        storage = open_storage(place)
        return cls(place, storage, read_manifest(storage, place))

    @property
    def model(self) -> str:
        """The digest of its model."""
        return str(self.manifest.run["model"])

    def read(self, part: PartRecord, columns: Sequence[str]) -> Any:
        """Return columns of a part as a table of pyarrow, after verifying its digest.

        Raises:
            DataError: The file is missing or is not the one that the run has written.
            MachineError: It cannot be read.
            OSError: Likewise.
        """
        content = self.storage.read(part.file)
        if content is None or hashlib.sha256(content).hexdigest() != part.sha256:
            state = "is missing" if content is None else "was changed or damaged after the run"
            raise DataError(
                f"{self.place}: {part.file} {state}; remove _SUCCESS.json and the file, and --resume writes it again"
            )
        return parquet.read_table(io.BytesIO(content), columns=list(columns))

    def tables(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield columns of all parts in order; raises as `read`."""
        return (self.read(part, columns) for part in self.manifest.parts)
