"""`clf-train`: trains an image classifier."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from clf_runtime import __version__
from clf_runtime.command import ARTIFACTS_OPTION, execute, say
from clf_runtime.errors import DataError, InvalidModelError, UsageError, escape
from clf_train import torchrun
from clf_train.normalization_options import MEAN_OPTION, STD_OPTION
from clf_train.progress import Progress
from clf_train.registry import DATASETS, MODELS, TORCHVISION
from clf_train.summary import format_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from clf_runtime.spec import Color, ResizeMode
    from clf_train.config import CacheOption

_STARTED = time.monotonic()  # for --budget

# Shared with clf-import.
DATA_ROOT_OPTION = click.option(
    "--data-root",
    metavar="DIR",
    envvar="CLF_DATA_ROOT",
    default="data",
    show_default=True,
    help="The folder of named data sets; missing ones are downloaded to it.",
)
RESIZE_OPTION = click.option(
    "--resize",
    type=click.Choice(["crop", "squash", "pad"]),
    default="crop",
    show_default=True,
    help="How images of another aspect ratio become the input: crop the center, squash, or pad.",
)
TEST_SPLIT_OPTION = click.option(
    "--test-split",
    type=click.FloatRange(0, 0.9, min_open=True),
    default=0.2,
    show_default=True,
    help="The share of the test split, if the data has none of its own.",
)
SEED_OPTION = click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Seed of the splits and of everything random in training.",
)
DATA_OPTIONS = (
    click.option("--image-column", metavar="NAME", help="The column of a table with the images, or their paths."),
    click.option("--label-column", metavar="NAME", help="The column of a table with the classes."),
    click.option("--split-column", metavar="NAME", help="The column of a table with train, val or test."),
    click.option(
        "--group-by",
        metavar="REGEX|COLUMN",
        help="Images that agree in this part of their name, or in this column, share a split.",
    ),
)
COLOR_OPTION = click.option(
    "--color", type=click.Choice(["L", "RGB"]), help="Gray or color input.  [default: the model's, or as the images]"
)


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for manifests and groups of images to a command."""
    for option in reversed(DATA_OPTIONS):
        command = option(command)
    return command


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic from click 8.5 on
    """HxW, or one number for a square."""

    name = "HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        if isinstance(value, tuple):
            return cast("tuple[int, int]", value)
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isdigit() and 8 <= int(part) <= 1024 for part in parts):
            self.fail(
                f"{value!r} is not a size; expected 32 or 32x48, for example, with 8 to 1024 pixels per side.",
                param,
                ctx,
            )
        return int(parts[0]), int(parts[-1])


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic from click 8.5 on
    """A number with a unit: s, min or h."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h)", str(value).strip())
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a time; expected 90s, 5min or 1h, for example.", param, ctx)
        return float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]]


def _list_models(context: click.Context, parameter: click.Parameter, is_requested: bool) -> None:
    if is_requested:
        for row in MODELS:
            click.echo(f"{row.name}\t{row.description}")
        for name in TORCHVISION:
            click.echo(f"{name}\tfrom torchvision")
        context.exit()


@click.command(
    "clf-train",
    epilog="\b\nNamed data sets:\n"
    + "\n".join(f"  {row.name:<14} {row.description}" for row in DATASETS)
    + """

\b
A folder contains a folder of images for each class, or train/, valid/ and test/
with those in them. Without test/, the seed selects the test split. A file is an
archive of such a folder (.zip, .tar, .tar.gz), or a manifest: a table with the
columns path, label and perhaps split (.csv, .tsv, .jsonl, .parquet), or a COCO
or Label Studio export (.json). Shards are tar files of WebDataset, or Parquet
files with images: a folder of them, or a pattern in quotes.

\b
Examples:
  clf-train
  clf-train --data mnist --data-root ~/data -a artifacts/mnist
  clf-train --data photos/ --size 64 --epochs 40
  clf-train --data photos/ --size 64 --epochs 40 --resume
  clf-train --data photos.csv --group-by camera
  clf-train --data 'shards/train-{0000..0099}.tar'
  clf-train -a artifacts/new --compare artifacts/old

\b
Exit codes: 0 success, 2 usage error, 3 invalid data or weights,
4 this machine cannot do it, 130 interrupted (--resume continues).""",
)
@ARTIFACTS_OPTION
@click.option(
    "--data", "-d", metavar="NAME|DIR|FILE", default="digits", show_default=True, help="The images to train on."
)
@DATA_ROOT_OPTION
@click.option(
    "--model",
    metavar="NAME|PACKAGE.MODULE:FACTORY",
    default="auto",
    show_default=True,
    help="A name from --list-models, or your own function.",
)
@click.option(
    "--weights",
    metavar="DEFAULT|none|FILE",
    help="Start from ImageNet weights, from scratch, or from a state_dict in a file.  "
    "[default: ImageNet weights that a Python package contains, if the model has any]",
)
@click.option(
    "--epochs",
    type=click.FloatRange(0, min_open=True),
    help="Passes over the training images; 0.5 sees half of them.  [default: the recipe's]",
)
@click.option(
    "--budget",
    "budget_s",
    type=Duration(),
    help="Time until the model is finished, like 90s, 5min or 1h; fewer epochs fit into less time.",
)
@click.option("--batch-size", type=click.IntRange(2), help="Images per step.  [default: the recipe's]")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Peak of the one-cycle schedule.  [default: the recipe's]",
)
@click.option(
    "--size",
    type=Size(),
    help="Input size in pixels.  [default: 224 for photos, 176 for those of at most 64 pixels, otherwise that of the "
    "images, at most 64]",
)
@COLOR_OPTION
@RESIZE_OPTION
@MEAN_OPTION
@STD_OPTION
@data_options
@TEST_SPLIT_OPTION
@SEED_OPTION
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train; auto uses CUDA if it is available.",
)
@click.option("--preview", is_flag=True, help="Only check every image and write preview.html; do not train.")
@click.option(
    "--skip-unreadable", is_flag=True, help="Leave out images that cannot be read; unreadable.csv lists them."
)
@click.option(
    "--cache",
    type=click.Choice(["auto", "memory", "disk", "none"]),
    default="auto",
    show_default=True,
    help="Where decoded images stay during training; none decodes them again for each epoch.",
)
@click.option(
    "--checkpoint-every",
    "checkpoint_every_s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=180,
    show_default=True,
    help="How often to write a checkpoint within an epoch; each epoch ends with one.",
)
@click.option("--tensorboard", is_flag=True, help="Also write event files for TensorBoard, into tensorboard/.")
@click.option("--resume", is_flag=True, help="Continue interrupted training from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace a finished model or unfinished training.")
@click.option(
    "--compare",
    metavar="DIR",
    help="Do not train: compare the model of --artifacts with that of another artifacts folder.",
)
@click.option(
    "--trust-factory",
    "trusted_factories",
    metavar="PACKAGE.MODULE:FACTORY",
    multiple=True,
    help="With --compare: run this function of your own to build a network; repeat for several.",
)
@click.option(
    "--format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How --compare prints its result.",
)
@click.option(
    "--list-models",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_models,
    help="List all models and exit.",
)
@click.version_option(__version__, prog_name="clf-train")
def command(
    artifacts: str,
    data: str,
    data_root: str,
    model: str,
    weights: str | None,
    epochs: float | None,
    budget_s: float | None,
    batch_size: int | None,
    learning_rate: float | None,
    size: tuple[int, int] | None,
    color: Color | None,
    resize: ResizeMode,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_column: str | None,
    label_column: str | None,
    split_column: str | None,
    group_by: str | None,
    test_split: float,
    seed: int,
    device: str,
    preview: bool,
    skip_unreadable: bool,
    cache: CacheOption,
    checkpoint_every_s: float,
    tensorboard: bool,
    resume: bool,
    overwrite: bool,
    compare: str | None,
    trusted_factories: tuple[str, ...],
    format: str,
) -> None:
    """Train an image classifier on a named data set, or on a folder with a folder of images for each class.

    Writes model.pt, model.json, history.csv, report.html and samples/ into the artifacts folder.
    """
    if compare is not None:
        _compare(artifacts, compare, trusted_factories, format)
        return
    from pathlib import Path

    from clf_runtime.labeled import Columns
    from clf_train.allocator import keep_freed_memory
    from clf_train.config import DataSource, InputOptions, TrainConfig
    from clf_train.portable import portable_command
    from clf_train.training import preview as write_preview
    from clf_train.training import train

    columns = Columns(image_column, label_column, split_column, group_by)
    config = TrainConfig(
        source=DataSource(data, data_root, test_split, seed, columns),
        model=model,
        weights=weights,
        input=InputOptions(size, color, resize, mean, std),
        epochs=epochs,
        budget_s=budget_s,
        started=_STARTED,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=device,
        cache=cache,
        skip_unreadable=skip_unreadable,
        overwrite=overwrite,
        resume=resume,
        checkpoint_every_s=checkpoint_every_s,
        tensorboard=tensorboard,
        command=portable_command("clf-train", sys.argv[1:]),
    )
    folder = Path(artifacts)
    keep_freed_memory()
    with Progress() as progress:
        if preview:
            path = write_preview(config, folder, progress)
            click.echo(escape(f"wrote {path}; the same command without --preview trains"))
            return
        try:
            result = train(config, folder, progress)
        except (DataError, InvalidModelError, UsageError) as error:
            if torchrun.is_main_process():
                raise
            sys.exit(error.exit_code)  # every process raises the same error; one prints it
    if torchrun.is_main_process():
        for warning in result.warnings:
            say(f"warning: {warning}")
        click.echo(format_result(result, artifacts, config.source))


def _compare(artifacts: str, other: str, trusted_factories: tuple[str, ...], format: str) -> None:
    """Print the comparison of two finished models."""
    from pathlib import Path

    from clf_train.comparing import CompareOptions, compare_models
    from clf_train.comparison_format import format_comparison, json_from_comparison

    context = click.get_current_context()

    def find_given(name: str) -> str | None:
        is_default = context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT
        return None if is_default else context.params[name]

    options = CompareOptions(find_given("data"), find_given("data_root"), trusted_factories)
    comparison = compare_models(Path(artifacts), Path(other), options)
    click.echo(json_from_comparison(comparison) if format == "json" else format_comparison(comparison))


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)
