"""`clf-batch`: classify many images on a cluster, and `clf-batch report` about the results. Parses, calls, prints.

Heavy modules are imported inside the command, so that `--help` only takes the time to import click.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from clf_runtime import __version__
from clf_runtime.artifacts import ONNX
from clf_runtime.command import ARTIFACTS_OPTION, MAX_IMAGE_BYTES_OPTION, REQUIRE_SIGNATURE_OPTION, execute
from clf_runtime.errors import EXIT_OK, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from clf_batch.options import BatchOptions

_GPU_DEVICES = ("cuda", "tensorrt")


@click.command(
    "clf-batch",
    epilog="""\b
Examples:
  clf-batch photos -r --output results
  clf-batch photos -r --output results --resume
  clf-batch s3://archive/2026/ -r --output s3://results/2026 --address auto
  clf-batch @names.txt --output results --logits float16
  clf-batch images.parquet 'shards/*.tar' --output results

\b
Then: (a folder of the name report is ./report)
  clf-batch report results
  clf-batch report results --compare old-results --html report.html

\b
Exit codes: 0 success, 1 some images failed, 2 usage error, 3 invalid model or
data, 4 this machine or the cluster cannot do it, 130 interrupted.""",
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@ARTIFACTS_OPTION
@click.option("--model", "-m", metavar="FILE", help="Exported model.  [default: model.onnx in --artifacts]")
@click.option("--output", "-o", required=True, metavar="DIR|URL", help="Write the results here, as Parquet files.")
@click.option("--resume", is_flag=True, help="Resume an interrupted run.")
@click.option("--overwrite", is_flag=True, help="Replace the results of another run.")
@click.option("--recursive", "-r", is_flag=True, help="Include subfolders.")
@click.option("--column", metavar="NAME", help="Column of tables with paths or bytes.  [default: found by its name]")
@click.option(
    "--shard-size",
    type=click.IntRange(1, 1_000_000),
    default=2000,
    show_default=True,
    metavar="N",
    help="Images in one file of results: what is done again if a worker dies.",
)
@click.option("--top", "-k", type=click.IntRange(1), default=1, show_default=True, help="Number of labels per image.")
@click.option("--logits", type=click.Choice(["float16", "float32"]), help="Add a column with the logits.")
@click.option(
    "--address",
    metavar="local|auto|HOST:PORT|ray://...",
    default="local",
    show_default=True,
    help="Ray cluster. local starts Ray on this machine, auto finds a cluster that runs on it.",
)
@click.option("--threads", type=click.IntRange(1), help="Cores to use with --address local.  [default: all]")
@click.option("--workers", type=click.IntRange(1), help="Number of workers.  [default: as many as have room]")
@click.option("--worker-threads", type=click.IntRange(1), default=1, show_default=True, help="Cores of each worker.")
@click.option(
    "--worker-gpus",
    type=click.FloatRange(0),
    metavar="N",
    help="GPUs of each worker, or a fraction of one.  [default: 1 with --device cuda or tensorrt, else 0]",
)
@click.option(
    "--device",
    metavar="auto|cpu|cuda|NAME",
    default="auto",
    show_default=True,
    help="As of clf-run: a named device runs or the command fails.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Number of images per inference call."
)
@MAX_IMAGE_BYTES_OPTION
@REQUIRE_SIGNATURE_OPTION
@click.version_option(__version__, prog_name="clf-batch")
def command(
    inputs: tuple[str, ...],
    artifacts: str,
    model: str | None,
    output: str,
    resume: bool,
    overwrite: bool,
    recursive: bool,
    column: str | None,
    shard_size: int,
    top: int,
    logits: str | None,
    address: str,
    threads: int | None,
    workers: int | None,
    worker_threads: int,
    worker_gpus: float | None,
    device: str,
    batch_size: int,
    max_image_bytes: int,
    require_signature: tuple[str, ...],
) -> int:
    """Classify many images on a cluster: files, folders, patterns, @LIST, tables, tar archives, or URLs of them.

    Nothing is lost and nothing is done twice: interrupted by whatever, --resume continues.
    """
    from pathlib import Path

    from clf_batch.options import BatchOptions, ClusterOptions, InputOptions, ModelOptions, ResultOptions
    from clf_runtime.machine import usable_cores

    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite contradict each other.")
    if threads is not None and address != "local":
        raise click.UsageError("--threads needs --address local; --workers limits what runs on a cluster.")
    cores = threads or usable_cores()
    if address == "local" and worker_threads > cores:
        raise click.UsageError(f"--worker-threads must not exceed the cores that are used here, {cores}.")
    if worker_gpus is None:
        worker_gpus = 1.0 if device.partition(":")[0] in _GPU_DEVICES else 0.0
    path = Path(model) if model is not None else Path(artifacts) / ONNX
    return _run(
        BatchOptions(
            InputOptions(inputs, recursive, column, shard_size, str(Path.cwd())),
            ModelOptions(
                path, device, worker_threads, batch_size, max_image_bytes, tuple(map(Path, require_signature))
            ),
            ResultOptions(output, top, logits, resume, overwrite),
            ClusterOptions(address, cores, workers, worker_gpus),
        )
    )


def main() -> NoReturn:
    """Run `clf-batch`, or `clf-batch report` if that is the first argument; the entry point."""
    import sys

    if sys.argv[1:2] == ["report"]:
        from clf_batch.report.cli import command as report_command

        del sys.argv[1]
        execute(report_command)
    execute(command)


def _run(options: BatchOptions) -> int:
    from clf_batch.callbacks import Callbacks
    from clf_batch.progress import Progress
    from clf_batch.run import run

    progress = Progress()
    try:
        done = run(options, Callbacks(progress.on_start, progress.on_part, progress.warn))
    finally:
        progress.clear()
    progress.finish(done)
    return EXIT_SOME_FAILED if done.failures else EXIT_OK
