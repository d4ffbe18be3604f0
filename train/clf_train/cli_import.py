"""`clf-import`: turns a state_dict that was trained elsewhere into a finished artifacts folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from clf_runtime import __version__
from clf_runtime.command import ARTIFACTS_OPTION, execute
from clf_runtime.errors import escape
from clf_train.cli import (
    COLOR_OPTION,
    DATA_ROOT_OPTION,
    RESIZE_OPTION,
    SEED_OPTION,
    TEST_SPLIT_OPTION,
    Size,
    data_options,
)
from clf_train.normalization_options import MEAN_OPTION, STD_OPTION
from clf_train.summary import format_accuracy, format_export_command

if TYPE_CHECKING:
    from clf_runtime.spec import Color, ResizeMode


@click.command(
    "clf-import",
    epilog="""\b
Examples:
  clf-import --weights net.pt --model lenet --labels classes.txt
  clf-import --weights best.ckpt --model resnet18 --labels cat,dog --data photos/
  clf-import --weights mine.safetensors --model mypackage.net:build --labels a,b,c
             --size 96x128 --color RGB --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

\b
Exit codes: 0 success, 2 usage error, 3 invalid weights or data,
4 this machine cannot do it, 130 interrupted (nothing is written).""",
)
@ARTIFACTS_OPTION
@click.option("--weights", required=True, metavar="FILE", help="A state_dict, a checkpoint with one, or safetensors.")
@click.option(
    "--model",
    required=True,
    metavar="NAME|PACKAGE.MODULE:FACTORY",
    help="A name from clf-train --list-models, or your own function.",
)
@click.option("--labels", required=True, metavar="A,B,C|FILE", help="In output order; a file has one label per line.")
@click.option("--size", type=Size(), help="Input size in pixels.  [default: the model's]")
@COLOR_OPTION
@RESIZE_OPTION
@MEAN_OPTION
@STD_OPTION
@click.option(
    "--data", "-d", metavar="NAME|DIR|FILE", help="Labeled images, to measure the accuracy and fit the temperature."
)
@DATA_ROOT_OPTION
@data_options
@TEST_SPLIT_OPTION
@SEED_OPTION
@click.option("--overwrite", is_flag=True, help="Replace a finished model or unfinished training.")
@click.version_option(__version__, prog_name="clf-import")
def command(
    artifacts: str,
    weights: str,
    model: str,
    labels: str,
    size: tuple[int, int] | None,
    color: Color | None,
    resize: ResizeMode,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    data: str | None,
    data_root: str,
    image_column: str | None,
    label_column: str | None,
    split_column: str | None,
    group_by: str | None,
    test_split: float,
    seed: int,
    overwrite: bool,
) -> None:
    """Import a state_dict that was trained elsewhere, so that clf-export can verify and export it."""
    from pathlib import Path

    from clf_runtime.labeled import Columns
    from clf_train.config import DataSource, InputOptions
    from clf_train.importing import ImportConfig, import_model, read_labels
    from clf_train.portable import portable_command

    columns = Columns(image_column, label_column, split_column, group_by)
    config = ImportConfig(
        weights=Path(weights),
        model=model,
        labels=read_labels(labels),
        source=DataSource(data or "", data_root, test_split, seed, columns),
        has_data=data is not None,
        input=InputOptions(size, color, resize, mean, std),
        overwrite=overwrite,
        command=portable_command("clf-import", sys.argv[1:]),
    )
    folder = Path(artifacts)
    spec = import_model(config, folder)
    accuracy = f"{format_accuracy(spec.metrics)}; " if spec.metrics else ""
    click.echo(
        escape(
            f"{accuracy}wrote {folder / 'model.pt'} with {len(config.labels)} labels; "
            f"next: {format_export_command(spec, artifacts, config.source)}"
        )
    )


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)
