"""The options of `clf-batch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InputOptions:
    """Which images to classify.

    Attributes:
        arguments: Files, folders, patterns, lists, tables, tar archives, each of them a path or a URL.
        recursive: Whether to include subfolders.
        column: The column of tables that has the path or the bytes of an image; None to find it by its name.
        shard_size: How many images a shard has; a tar archive is one shard.
        folder: Where relative paths start.
    """

    arguments: tuple[str, ...]
    recursive: bool
    column: str | None
    shard_size: int
    folder: str


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs, and how.

    Attributes:
        path: The exported file.
        device: As `clf-run --device`.
        threads: The cores of one worker.
        batch_size: How many images the model gets at once.
        max_image_bytes: The memory that decoding and resizing one image may take.
        require_signature: Public keys, one of which must have signed the model.
    """

    path: Path
    device: str
    threads: int
    batch_size: int
    max_image_bytes: int
    require_signature: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ResultOptions:
    """What is written, and where.

    Attributes:
        output: A folder or a URL.
        top: How many labels a row has.
        logits: The type of the logits, `"float16"` or `"float32"`; None to leave them out.
        resume: Whether to continue an interrupted run.
        overwrite: Whether to remove the results of another run.
    """

    output: str
    top: int
    logits: str | None
    resume: bool
    overwrite: bool


@dataclass(frozen=True)
class ClusterOptions:
    """Where the workers run.

    Attributes:
        address: `"local"`, `"auto"`, or the address of a Ray cluster.
        cores: The cores of this machine to use, if the address is `"local"`.
        workers: The number of workers; None for as many as the cluster has room for.
        gpus: The GPUs of one worker, possibly a fraction.
    """

    address: str
    cores: int
    workers: int | None
    gpus: float


@dataclass(frozen=True)
class BatchOptions:
    """The options of one call of `clf-batch`."""

    inputs: InputOptions
    model: ModelOptions
    results: ResultOptions
    cluster: ClusterOptions
