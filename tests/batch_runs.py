"""Runs of clf-batch without Ray: one worker in this process."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pyarrow import parquet

from clf_batch import manifest
from clf_batch.inputs.find import find_units
from clf_batch.manifest import Identity, Manifest
from clf_batch.options import BatchOptions
from clf_batch.run import identify
from clf_batch.shards import make_shards
from clf_batch.storage import open_storage
from clf_batch.worker import ModelFiles, ShardWorker, WorkerSetup
from clf_runtime import onnx_file


def identity_of(options: BatchOptions) -> Identity:
    return identify(options, onnx_file.read(options.model.path))


def begin(options: BatchOptions) -> ShardWorker:
    """Prepare the output of a run, and return a worker that has opened the model."""
    storage, identity = open_storage(options.results.output), identity_of(options)
    manifest.begin(storage, identity, manifest.check(storage, identity, options.results))
    worker = ShardWorker(WorkerSetup(options.model, identity, options.results.output, options.inputs.folder))
    worker.open(ModelFiles.read(options.model.path))
    return worker


def run_here(options: BatchOptions) -> Manifest:
    """Do what `clf_batch.run.run` does, with one worker in this process instead of Ray."""
    worker = begin(options)
    shards = make_shards(find_units(options.inputs), options.inputs.shard_size)
    parts = tuple(worker.score(shard) for shard in shards)
    done = Manifest(asdict(identity_of(options)), parts, ("CPUExecutionProvider",), {}, 1.0)
    manifest.finish(open_storage(options.results.output), options.results.output, done)
    return done


def rows_of(output: object) -> list[dict[str, object]]:
    """Return all rows of a folder, in the order of the inputs."""
    return [row for path in sorted(Path(str(output)).glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
