"""`clf-serve`: serve an exported model over HTTP. Parses, calls, prints.

Heavy modules are imported inside the command, so that `--help` only takes the time to import click.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from clf_runtime import __version__
from clf_runtime.artifacts import ONNX
from clf_runtime.command import (
    ARTIFACTS_OPTION,
    MAX_IMAGE_BYTES_OPTION,
    REQUIRE_SIGNATURE_OPTION,
    Duration,
    execute,
    say,
)

if TYPE_CHECKING:
    from clf_serve.options import ServeOptions


@click.command(
    "clf-serve",
    epilog="""\b
Examples:
  clf-serve
  clf-serve --model model.onnx --port 9000
  clf-serve --unix /run/clf/clf.sock
  clf-serve --host 0.0.0.0 --token-file tokens --tls-cert cert.pem --tls-key key.pem

\b
Then:
  curl --data-binary @img.jpg http://127.0.0.1:8000/v1/classify
  clf-run --server http://127.0.0.1:8000 img.jpg

\b
Exit codes: 0 stopped, all accepted requests answered; 2 usage error, 3 invalid model,
4 this machine cannot do it, 130 interrupted while loading.""",
)
@ARTIFACTS_OPTION
@click.option("--model", "-m", metavar="FILE", help="Exported model.  [default: model.onnx in --artifacts]")
@click.option("--name", metavar="NAME", help="Name of the model in /v2/models/NAME.  [default: that of its file]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 for any free one."
)
@click.option("--unix", metavar="PATH", help="Listen on a Unix socket instead.")
@click.option("--tls-cert", metavar="FILE", help="Certificate chain (PEM): serve HTTPS.")
@click.option("--tls-key", metavar="FILE", help="Its private key (PEM), if that is in a file of its own.")
@click.option("--token-file", metavar="FILE", help="Accept only requests with a bearer token of FILE, one per line.")
@click.option(
    "--device",
    metavar="auto|cpu|cuda[:N]|NAME",
    default="auto",
    show_default=True,
    help="As of clf-run: a named device runs or the command fails.",
)
@click.option("--threads", type=click.IntRange(1), help="Number of cores.  [default: all available to this process]")
@click.option(
    "--workers", type=click.IntRange(1), help="Batches in progress at once; they share the cores.  [default: --threads]"
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Most images of one batch.")
@click.option(
    "--max-wait",
    type=Duration(),
    default="0ms",
    show_default=True,
    help="How long a batch waits for more images while all other workers are busy.",
)
@click.option(
    "--queue", type=click.IntRange(1), default=256, show_default=True, help="Images that may wait; more get a 503."
)
@click.option(
    "--timeout",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long a request may take to arrive, and then to be answered.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(1),
    default=32_000_000,
    show_default=True,
    metavar="N",
    help="Largest body of a request.",
)
@MAX_IMAGE_BYTES_OPTION
@REQUIRE_SIGNATURE_OPTION
@click.option(
    "--max-connections", type=click.IntRange(1), default=4096, show_default=True, help="Connections open at once."
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that share the cores; one that ends is replaced.",
)
@click.version_option(__version__, prog_name="clf-serve")
def command(
    artifacts: str,
    model: str | None,
    name: str | None,
    host: str,
    port: int,
    unix: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    token_file: str | None,
    device: str,
    threads: int | None,
    workers: int | None,
    batch_size: int,
    max_wait: float,
    queue: int,
    timeout: float,
    max_body_bytes: int,
    max_image_bytes: int,
    require_signature: tuple[str, ...],
    max_connections: int,
    processes: int,
) -> None:
    """Serve an exported model over HTTP: images in, predictions out.

    Listens on 127.0.0.1 unless told otherwise. The page for people is at /.
    """
    from pathlib import Path

    from clf_runtime.machine import usable_cores
    from clf_serve.options import Address, BatchOptions, ModelOptions, RequestLimits, ServeOptions

    def path(text: str | None) -> Path | None:
        return None if text is None else Path(text)

    if tls_key is not None and tls_cert is None:
        raise click.UsageError("--tls-key needs the certificate: name it with --tls-cert.")
    if not timeout:
        raise click.UsageError("--timeout must be longer than 0s.")
    file = path(model) or Path(artifacts) / ONNX
    threads, keys = threads or usable_cores(), tuple(map(Path, require_signature))
    _serve(
        ServeOptions(
            address=Address(host, port, path(unix), path(tls_cert), path(tls_key)),
            model=ModelOptions(file, name or file.stem, device, threads, max_image_bytes, keys),
            batch=BatchOptions(workers or threads, batch_size, max_wait, queue),
            limits=RequestLimits(max_body_bytes, timeout, max_connections),
            token_file=path(token_file),
            processes=processes,
        )
    )


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command, exit_immediately=True)


def _serve(options: ServeOptions) -> None:
    def log(line: str) -> None:
        say(f"clf-serve: {line}")

    if options.processes > 1:
        from clf_serve.supervisor import supervise

        supervise(options, log)
    else:
        from clf_runtime.session import silence_log
        from clf_serve.server import serve

        silence_log()
        serve(options, log)
