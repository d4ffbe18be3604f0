"""The options of `clf-serve`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Address:
    """Where the service listens.

    Attributes:
        host: A name or an address of this machine.
        port: The port; 0 lets the system choose one.
        unix: The path of a Unix socket, which replaces host and port.
        tls_cert: The certificate chain, PEM; None for plain HTTP.
        tls_key: Its private key, PEM; None if it is in the file of the certificate.
    """

    host: str
    port: int
    unix: Path | None
    tls_cert: Path | None
    tls_key: Path | None


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs, and where.

    Attributes:
        path: The exported file.
        name: Its name in the Open Inference Protocol.
        device: As `clf-run --device`.
        threads: The number of cores.
        max_image_bytes: The memory that decoding and resizing one image may take.
        require_signature: Public keys, one of which must have signed the model, and each that replaces it.
        is_judge: Whether this process judges a version on probation.
    """

    path: Path
    name: str
    device: str
    threads: int
    max_image_bytes: int
    require_signature: tuple[Path, ...] = ()
    is_judge: bool = True


@dataclass(frozen=True)
class BatchOptions:
    """How images of different requests are put together.

    Attributes:
        workers: How many batches are in progress at once; the threads are shared among them.
        size: The most images of one batch.
        max_wait_s: How long the first image of a batch waits for others while no other worker is idle.
        queue: How many images may wait for a worker.
    """

    workers: int
    size: int
    max_wait_s: float
    queue: int


@dataclass(frozen=True)
class RequestLimits:
    """What a client may do.

    Attributes:
        body_bytes: The largest body of a request.
        timeout_s: How long a request may take to arrive, and how long it then waits for its answer.
        connections: How many connections may be open.
    """

    body_bytes: int
    timeout_s: float
    connections: int


@dataclass(frozen=True)
class ServeOptions:
    """The options of one call of `clf-serve`.

    Attributes:
        token_file: The file of bearer tokens; None if no request needs one.
        processes: How many processes serve the model. The options of each are those of `of_member`.
    """

    address: Address
    model: ModelOptions
    batch: BatchOptions
    limits: RequestLimits
    token_file: Path | None
    processes: int = 1

    def of_member(self, place: int) -> ServeOptions:
        """Return the options of one of the processes: its share of the cores."""
        threads = max(1, self.model.threads // self.processes)
        return replace(
            self,
            model=replace(self.model, threads=threads, is_judge=place == 0),
            batch=replace(self.batch, workers=max(1, self.batch.workers // self.processes)),
        )
