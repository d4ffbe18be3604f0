"""One Parquet file of results per shard: its columns, and what its footer tells about it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from clf_runtime.classifier import Ranking
from clf_runtime.errors import ImageError
from clf_runtime.session import Float32Array

_KEY = b"clf-batch"
_ROW_GROUP = 20_000
_COMPRESSION_LEVEL = 3


class Scores(NamedTuple):
    """What the model says about one image."""

    ranking: Ranking
    logits: Float32Array | None  # (classes,)


@dataclass(frozen=True)
class Columns:
    """What the rows of a run have in common.

    Attributes:
        model: The digest of the model.
        provider: The execution provider that ran it.
        logits: The type of the logits; None if there are none.
    """

    model: str
    provider: str
    logits: str | None


@dataclass(frozen=True)
class PartRecord:
    """What is known of one file of results.

    Attributes:
        file: Its name.
        names: The digest of the names of its shard.
        images: How many rows it has.
        failures: How many of them are images that could not be read.
        sha256: The digest of the file.
    """

    file: str
    names: str
    images: int
    failures: int
    sha256: str


class PartWriter:
    """Collects the rows of a shard, and returns them as the bytes of a Parquet file."""

    def __init__(self, columns: Columns) -> None:
        """Begin a file without rows."""
        self._columns = columns
        self._schema = schema(columns.logits)
        self._file = io.BytesIO()
        self._writer = parquet.ParquetWriter(
            self._file, self._schema, compression="zstd", compression_level=_COMPRESSION_LEVEL
        )
        self._rows: list[tuple[Any, ...]] = []
        self._images = 0
        self._failures = 0

    def add(self, name: str, result: Scores | ImageError) -> None:
        """Add the row of one image."""
        self._images += 1
        path = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if isinstance(result, ImageError):
            self._failures += 1
            row: tuple[Any, ...] = (path, None, None, None, None, result.kind, str(result), None)
        else:
            best = result.ranking.top[0]
            top = [{"label": score.label, "score": score.score} for score in result.ranking.top]
            row = (path, best.label, result.ranking.class_index, best.score, top, None, None, result.logits)
        self._rows.append(row)
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def finish(self, file: str, names: str) -> tuple[bytes, PartRecord]:
        """Return the content of the file, and its record."""
        if self._rows or not self._images:
            self._flush()
        footer = {"names": names, "images": self._images, "failures": self._failures}
        self._writer.add_key_value_metadata({_KEY: json.dumps(footer)})
        self._writer.close()
        content = self._file.getvalue()
        return content, PartRecord(file, names, self._images, self._failures, hashlib.sha256(content).hexdigest())

    def _flush(self) -> None:
        path, label, index, score, top, kind, message, logits = (
            zip(*self._rows, strict=True) if self._rows else [()] * 8
        )
        count = len(self._rows)
        values: dict[str, Sequence[Any]] = {
            "path": path,
            "label": label,
            "index": index,
            "score": score,
            "top": top,
            "error_kind": kind,
            "error_message": message,
            "model": [self._columns.model] * count,
            "provider": [self._columns.provider] * count,
        }
        if self._columns.logits is not None:
            values["logits"] = [None if row is None else row.astype(self._columns.logits) for row in logits]
        self._writer.write_table(pa.table(values, self._schema))
        self._rows = []


def schema(logits: str | None) -> pa.Schema:
    """Return the columns of a file of results."""
    columns = [
        ("path", pa.string()),
        ("label", pa.string()),
        ("index", pa.int32()),
        ("score", pa.float32()),
        ("top", pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
        ("model", pa.string()),
        ("provider", pa.string()),
    ]
    if logits is not None:
        columns.append(("logits", pa.list_(pa.float16() if logits == "float16" else pa.float32())))
    return pa.schema(columns)


def record_from_part(file: str, names: str, content: bytes) -> PartRecord | None:
    """Return the record of a complete file with the results of these names; None if the content is something else."""
    try:
        metadata = parquet.read_metadata(io.BytesIO(content))
        footer = json.loads((metadata.metadata or {})[_KEY])
        found = PartRecord(
            file, footer["names"], footer["images"], footer["failures"], hashlib.sha256(content).hexdigest()
        )
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError):
        return None
    return found if found.names == names and metadata.num_rows == found.images else None


def record_to_json(record: PartRecord) -> dict[str, Any]:
    """Return a record as an object of JSON."""
    return asdict(record)


def record_from_json(content: dict[str, Any]) -> PartRecord:
    """Return a record from an object of JSON. Raises KeyError."""
    return PartRecord(**{field.name: content[field.name] for field in fields(PartRecord)})
