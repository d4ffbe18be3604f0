"""The two files beside the results: `_run.json`, written first, and `_SUCCESS.json`, written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from clf_batch.options import ResultOptions
from clf_batch.results import PartRecord, record_from_json, record_to_json
from clf_batch.shards import is_part
from clf_batch.storage import Storage
from clf_runtime.errors import DataError, MachineError, UsageError

# Readers of Parquet folders skip names that begin with an underscore or a dot.
RUN_FILE = "_run.json"
MANIFEST_FILE = "_SUCCESS.json"


@dataclass(frozen=True)
class Identity:
    """Everything that the results depend on: an interrupted run is resumed only if it is the same.

    Attributes:
        clf_version: The version of clf-edge.
        model: The digest of the model.
        inputs: The arguments.
        recursive: Whether subfolders are included.
        column: The column of tables.
        folder: Where relative names start.
        shard_size: How many images a shard has.
        top: How many labels a row has.
        logits: The type of the logits.
        device: Where the model runs.
        batch_size: How many images the model gets at once.
        max_image_bytes: The memory that one image may take.
    """

    clf_version: str
    model: str
    inputs: tuple[str, ...]
    recursive: bool
    column: str | None
    folder: str
    shard_size: int
    top: int
    logits: str | None
    device: str
    batch_size: int
    max_image_bytes: int

    @property
    def run_id(self) -> str:
        """A name for this run: the same for the same identity."""
        return hashlib.sha256(_dump(asdict(self))).hexdigest()[:16]

    def to_json(self) -> bytes:
        """Return the content of `_run.json`."""
        return _dump(asdict(self))


@dataclass(frozen=True)
class Manifest:
    """The content of `_SUCCESS.json`: a complete run.

    Attributes:
        run: What identifies it.
        parts: Its files, in the order of the inputs.
        providers: The execution providers that ran the model.
        versions: Package → the versions on the machines that took part.
        seconds: How long it took; of a resumed run, the last part of it.
    """

    run: Mapping[str, Any]
    parts: tuple[PartRecord, ...]
    providers: tuple[str, ...]
    versions: Mapping[str, Sequence[str]]
    seconds: float

    @property
    def images(self) -> int:
        """The number of rows in all files."""
        return sum(part.images for part in self.parts)

    @property
    def failures(self) -> int:
        """How many of them are images that could not be read."""
        return sum(part.failures for part in self.parts)

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return _dump(
            {
                "images": self.images,
                "failures": self.failures,
                "run": dict(self.run),
                "providers": self.providers,
                "versions": dict(self.versions),
                "seconds": round(self.seconds, 1),
                "parts": [record_to_json(part) for part in self.parts],
            }
        )


@dataclass(frozen=True)
class OutputState:
    """What an output has before a run.

    Attributes:
        complete: The manifest, if this very run is complete already.
        is_new: Whether there is no interrupted run to continue.
        obsolete: The files of another run.
    """

    complete: Manifest | None
    is_new: bool
    obsolete: tuple[str, ...]


def check(storage: Storage, identity: Identity, options: ResultOptions) -> OutputState:
    """Return what the output has, if the options allow a run to write there. Nothing is changed.

    Raises:
        UsageError: The output is not empty, and the options do not say what should happen to it.
        DataError: The interrupted run is a different one.
        MachineError: The output cannot be read.
        OSError: Likewise.
    """
    place = options.output
    names = [name for name in storage.names() if not name.startswith(".")]
    foreign = [name for name in names if not is_part(name) and name not in (RUN_FILE, MANIFEST_FILE)]
    if foreign and RUN_FILE not in names:
        raise UsageError(f"{place}: has files that clf-batch did not write ({foreign[0]}); name an empty or new folder")
    if names and not options.resume and not options.overwrite:
        raise UsageError(f"{place}: is not empty; --resume continues an interrupted run, --overwrite replaces it")
    if options.resume and (found := storage.read(RUN_FILE)) is not None:
        _check_same(place, found, identity)
        return OutputState(read_manifest(storage, place) if MANIFEST_FILE in names else None, False, ())
    return OutputState(None, True, tuple(name for name in names if is_part(name) or name == MANIFEST_FILE))


def begin(storage: Storage, identity: Identity, state: OutputState) -> None:
    """Write `_run.json`, and remove the files of another run. Raises MachineError, OSError."""
    if state.is_new:
        storage.remove(name for name in state.obsolete if name == MANIFEST_FILE)
        storage.write(RUN_FILE, identity.to_json())
        storage.remove(state.obsolete)


def finish(storage: Storage, place: str, manifest: Manifest) -> int:
    """Write the manifest, and return how many files of other slices of the inputs were removed before.

    Raises:
        MachineError: Another run has taken the output over, or results are gone.
        OSError: The output cannot be read or written.
    """
    if storage.read(RUN_FILE) != _dump(dict(manifest.run)):
        raise MachineError(f"{place}: another clf-batch has taken it over; name an output of its own for each run")
    names = storage.names()
    written = {part.file for part in manifest.parts}
    if missing := written.difference(names):
        raise MachineError(f"{place}: {min(missing)} was removed during the run; --resume writes it again")
    stale = [name for name in names if is_part(name) and name not in written]
    storage.remove(stale)
    storage.remove(name for name in names if name.startswith(".part-") and name.endswith(".tmp"))
    storage.write(MANIFEST_FILE, manifest.to_json())
    return len(stale)


def read_manifest(storage: Storage, place: str) -> Manifest:
    """Return the manifest of a complete run.

    Raises:
        DataError: There is none, or it is damaged.
        MachineError: The output cannot be read.
    """
    content = storage.read(MANIFEST_FILE)
    if content is None:
        hint = (
            "the run is not complete; --resume completes it"
            if storage.read(RUN_FILE)
            else "name an output of clf-batch"
        )
        raise DataError(f"{place}: has no {MANIFEST_FILE}; {hint}")
    try:
        found = json.loads(content)
        return Manifest(
            run=dict(found["run"]),
            parts=tuple(record_from_json(part) for part in found["parts"]),
            providers=tuple(found["providers"]),
            versions=dict(found["versions"]),
            seconds=float(found["seconds"]),
        )
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{place}: its {MANIFEST_FILE} is damaged; remove it, and --resume writes it again") from None


def _check_same(place: str, content: bytes, identity: Identity) -> None:
    try:
        found = dict(json.loads(content))
    except (ValueError, TypeError):
        raise DataError(f"{place}: its {RUN_FILE} is damaged; start over with --overwrite") from None
    own = json.loads(identity.to_json())
    for field in fields(Identity):
        if found.get(field.name) != own[field.name]:
            raise DataError(
                f"{place}: the interrupted run has another {field.name.replace('_', ' ')} "
                f"({_shorten(found.get(field.name))}, now {_shorten(own[field.name])}); use the same one, or "
                "start over with --overwrite"
            )


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _dump(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
