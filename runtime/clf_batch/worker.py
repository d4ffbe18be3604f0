"""A worker: loads the model once, and turns shards into files of results. Knows nothing of Ray."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from clf_batch.inputs.reading import read_images
from clf_batch.manifest import RUN_FILE, Identity
from clf_batch.options import ModelOptions
from clf_batch.results import Columns, PartRecord, PartWriter, Scores, record_from_part
from clf_batch.shards import Shard
from clf_batch.storage import Storage, open_storage
from clf_runtime import __version__
from clf_runtime.artifacts import SIGNATURE_SUFFIX
from clf_runtime.classifier import Classifier
from clf_runtime.diagnostics.selftest import run_self_test
from clf_runtime.errors import InvalidModelError, MachineError
from clf_runtime.pipeline import run_pipeline
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import runtime_version


@dataclass(frozen=True)
class ModelFiles:
    """A model as workers get it.

    Attributes:
        content: The exported file.
        signature: The file beside it, which the policy of a worker's machine may require; None if there is none.
    """

    content: bytes
    signature: bytes | None

    @classmethod
    def read(cls, path: Path) -> ModelFiles:
        """Read both. A worker compares the digest of the content with that of the run. Raises OSError."""
        signature = path.with_name(path.name + SIGNATURE_SUFFIX)
        return cls(path.read_bytes(), signature.read_bytes() if signature.is_file() else None)

    def write(self, path: Path) -> None:
        """Write both. Raises OSError."""
        path.write_bytes(self.content)
        if self.signature is not None:
            path.with_name(path.name + SIGNATURE_SUFFIX).write_bytes(self.signature)


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to know, on whatever machine it starts.

    Attributes:
        model: How the model runs; its path is that of the driver, for messages.
        identity: What identifies the run.
        output: The folder or URL of the results.
        folder: Where relative names start.
    """

    model: ModelOptions
    identity: Identity
    output: str
    folder: str


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker has found on its machine.

    Attributes:
        host: The name of the machine.
        provider: The execution provider that runs the model.
        warning: Why that is not CUDA although onnxruntime includes it; otherwise empty.
        versions: The versions that may affect results.
    """

    host: str
    provider: str
    warning: str
    versions: tuple[tuple[str, str], ...]


class ShardWorker:
    """Classifies shards, one after another."""

    _classifier: Classifier
    _columns: Columns
    _storage: Storage

    def __init__(self, setup: WorkerSetup) -> None:
        """Store what to do."""
        self._setup = setup

    def open(self, model: ModelFiles) -> WorkerInfo:
        """Load the model, test it, and look at the output.

        Raises:
            InvalidModelError: The model fails its self-test on this machine, or is not signed as its policy requires.
            MachineError: The device does not work, the output is not that of the run, or another version runs here.
        """
        setup, host = self._setup, platform.node()
        if setup.identity.clf_version != __version__:
            raise MachineError(f"{host} has clf-edge {__version__}, the driver {setup.identity.clf_version}; update it")
        self._classifier = _load(setup.model, model)
        if self._classifier.sha256 != setup.identity.model:
            raise InvalidModelError(f"{setup.model.path}: it has changed since the start; start again")
        self._columns = Columns(self._classifier.sha256, self._classifier.provider, setup.identity.logits)
        self._storage = open_storage(setup.output)
        if self._storage.read(RUN_FILE) != setup.identity.to_json():
            raise MachineError(
                f"{setup.output}: {host} does not see the {RUN_FILE} of this run there; name a folder that all "
                "machines share, or a bucket, and start only one run for it"
            )
        return WorkerInfo(host, self._classifier.provider, self._classifier.warning, _versions())

    def score(self, shard: Shard) -> PartRecord:
        """Classify the images of a shard and write its results, unless they are there already.

        Raises:
            MachineError: The device or the storage fails.
            OSError: The results cannot be written.
        """
        identity, model = self._setup.identity, self._setup.model
        file, names = shard.file_name(identity.run_id), shard.names
        content = self._storage.read(file)
        if content is not None and (record := record_from_part(file, names, content)) is not None:
            return record
        writer = PartWriter(self._columns)
        sources = read_images(shard.units, self._setup.folder, model.max_image_bytes)
        results = run_pipeline(sources, self._infer, self._classifier.decoder, model.threads, model.batch_size)
        for source, result in results:
            writer.add(source.name, result)
        content, record = writer.finish(file, names)
        self._storage.write(file, content)
        return record

    def _infer(self, pixels: UInt8Array) -> list[Scores]:
        logits, probabilities = self._classifier.run(pixels)
        rankings = self._classifier.rank(probabilities, self._setup.identity.top)
        rows = logits if self._columns.logits is not None else [None] * len(rankings)
        return [Scores(ranking, row) for ranking, row in zip(rankings, rows, strict=True)]


def _load(options: ModelOptions, model: ModelFiles) -> Classifier:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, options.path.name)
        model.write(path)
        classifier = Classifier.load(
            path,
            device=options.device,
            threads=options.threads,
            workers=options.threads,
            max_image_bytes=options.max_image_bytes,
        )
        result = run_self_test(classifier)
    if not result.passed:
        raise InvalidModelError(
            f"{options.path}: its self-test failed on {platform.node()} ({result}); export it again, or leave out this "
            "machine"
        )
    return classifier


def _versions() -> tuple[tuple[str, str], ...]:
    packages = ("numpy", "pillow", "pyarrow", "ray")
    return (
        ("python", platform.python_version()),
        ("onnxruntime", runtime_version()),
        *((name, version(name)) for name in packages),
    )
