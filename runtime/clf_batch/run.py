"""`clf-batch` from its options to the manifest. Start reading here.

The inputs become shards (`inputs/`, `shards.py`) while they are listed. Workers (`worker.py`) classify them wherever
Ray has room for one (`cluster.py`, `pool.py`). Each shard becomes one file of results (`results.py`, `storage.py`)
whose name follows from the names in the shard. An interrupted run therefore starts again from the first shard, and a
worker that finds the file of its shard has nothing to do. The manifest (`manifest.py`) is written last.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from clf_batch import manifest
from clf_batch.ahead import read_ahead
from clf_batch.callbacks import Callbacks
from clf_batch.cluster import connected
from clf_batch.inputs.find import find_units
from clf_batch.inputs.remote import is_url
from clf_batch.manifest import Identity, Manifest
from clf_batch.options import BatchOptions
from clf_batch.results import PartRecord
from clf_batch.shards import make_shards
from clf_batch.storage import open_storage
from clf_batch.worker import ModelFiles, WorkerInfo, WorkerSetup
from clf_runtime import __version__, onnx_file
from clf_runtime.onnx_file import OnnxFile

_SHARDS_AHEAD = 64


def run(options: BatchOptions, callbacks: Callbacks) -> Manifest:
    """Classify all images of the inputs, and return the manifest that was written, or found complete.

    Raises:
        ClfError: The options, the model, the inputs, the output or the cluster cannot be used.
        OSError: A file cannot be read or written.
    """
    started = time.monotonic()
    model = onnx_file.read_trusted(options.model.path, options.model.require_signature)
    files = ModelFiles.read(model.path)
    identity = identify(options, model)
    results = options.results
    storage = open_storage(results.output)
    shards = read_ahead(make_shards(find_units(options.inputs), options.inputs.shard_size), _SHARDS_AHEAD)
    try:
        first = next(shards, None)  # errors in the inputs are reported before anything starts or is removed
        state = manifest.check(storage, identity, results)
        if state.complete is not None:
            return state.complete
        if results.resume and state.is_new:
            callbacks.on_warning(
                f"{results.output}: there is no interrupted run to resume; starting from the beginning"
            )
        setup = WorkerSetup(options.model, identity, _reachable(results.output), options.inputs.folder)
        with connected(options.cluster, len(files.content)):
            from clf_batch.pool import WorkerPool  # imports ray, which `connected` configures

            manifest.begin(storage, identity, state)
            pool = WorkerPool(setup, files, options.cluster, callbacks)
            parts = _collect(pool.score(chain([] if first is None else [first], shards)), callbacks)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("--resume continues") from None
    finally:
        shards.close()
    done = Manifest(asdict(identity), parts, *_describe(pool.infos), time.monotonic() - started)
    removed = manifest.finish(storage, results.output, done)
    if removed:
        callbacks.on_warning(
            f"{results.output}: the inputs have changed since the interrupted run; replaced {removed:,} of its files"
        )
    return done


def _collect(records: Iterable[PartRecord], callbacks: Callbacks) -> tuple[PartRecord, ...]:
    parts = []
    for record in records:
        callbacks.on_part(record)
        parts.append(record)
    return tuple(sorted(parts, key=lambda part: part.file))


def identify(options: BatchOptions, model: OnnxFile) -> Identity:
    """Return what identifies a run."""
    inputs, results = options.inputs, options.results
    return Identity(
        clf_version=__version__,
        model=model.sha256,
        inputs=inputs.arguments,
        recursive=inputs.recursive,
        column=inputs.column,
        folder=inputs.folder,
        shard_size=inputs.shard_size,
        top=results.top,
        logits=results.logits,
        device=options.model.device,
        batch_size=options.model.batch_size,
        max_image_bytes=options.model.max_image_bytes,
    )


def _reachable(place: str) -> str:
    """Return a place as workers in other folders reach it."""
    return place if is_url(place) else str(Path(place).absolute())


def _describe(infos: Iterable[WorkerInfo]) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Return the providers and the versions of all workers."""
    versions: dict[str, set[str]] = {}
    for info in infos:
        for name, version in info.versions:
            versions.setdefault(name, set()).add(version)
    providers = tuple(sorted({info.provider for info in infos}))
    return providers, {name: sorted(found) for name, found in sorted(versions.items())}
