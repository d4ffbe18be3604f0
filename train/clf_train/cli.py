"""`clf-train`: images to a state_dict. Parses, calls, prints."""

from __future__ import annotations

import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from clf_runtime import __version__
from clf_runtime.command import ARTIFACTS_OPTION, execute, say
from clf_runtime.errors import DataError, InvalidModelError, UsageError
from clf_train.history import duration
from clf_train.registry import DATASETS, MODELS, TORCHVISION

if TYPE_CHECKING:
    from clf_runtime.spec import Color, ResizeMode
    from clf_train.config import Cache
    from clf_train.history import Epoch
    from clf_train.training import TrainResult


_SECONDS_BETWEEN_LINES = 60  # where there is no bar

# Shared with clf-import.
DATA_ROOT_OPTION = click.option(
    "--data-root",
    metavar="DIR",
    envvar="CLF_DATA_ROOT",
    default="data",
    show_default=True,
    help="Where data sets by name lie, or are downloaded to.",
)
RESIZE_OPTION = click.option(
    "--resize",
    type=click.Choice(["crop", "squash", "pad"]),
    default="crop",
    show_default=True,
    help="How an image of another shape becomes the input's shape.",
)
TEST_SPLIT_OPTION = click.option(
    "--test-split",
    type=click.FloatRange(0, 0.9, min_open=True),
    default=0.2,
    show_default=True,
    help="The share never trained on, where there is no test part.",
)
SEED_OPTION = click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
COLOR_OPTION = click.option(
    "--color", type=click.Choice(["L", "RGB"]), help="Gray or colour.  [default: the images', or the model's]"
)


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic from click 8.5 on
    """HxW, or one number for a square."""

    name = "HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Give (height, width) in pixels."""
        if isinstance(value, tuple):
            return cast("tuple[int, int]", value)
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isdigit() and 8 <= int(part) <= 1024 for part in parts):
            self.fail(f"{value!r} is no size; expected like 32 or 32x48, each from 8 to 1024 pixels.", param, ctx)
        return int(parts[0]), int(parts[-1])


def _list_models(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        for row in MODELS:
            click.echo(f"{row.name}\t{row.what}")
        for name in TORCHVISION:
            click.echo(f"{name}\ttorchvision's")
        context.exit()


@click.command(
    "clf-train",
    epilog="\b\nData sets by name:\n"
    + "\n".join(f"  {row.name:<14} {row.what}" for row in DATASETS)
    + """

\b
A folder has a folder of images for each class, or train/ and test/ (or val/)
with those in them. Without a test folder a part is held out, by the seed.

\b
Examples:
  clf-train
  clf-train --data mnist --data-root ~/data -a artifacts/mnist
  clf-train --data photos/ --size 64 --epochs 40
  clf-train --data photos/ --size 64 --epochs 40 --resume

\b
Exit codes: 0 done, 2 wrong usage, 3 data refused, 4 this machine cannot do it,
130 Ctrl-C (--resume goes on from there).""",
)
@ARTIFACTS_OPTION
@click.option("--data", "-d", metavar="NAME|DIR", default="digits", show_default=True, help="What to train on.")
@DATA_ROOT_OPTION
@click.option(
    "--model",
    metavar="NAME|PACKAGE.MODULE:FACTORY",
    default="auto",
    show_default=True,
    help="One of --list-models, or a function of your own.",
)
@click.option(
    "--weights", metavar="DEFAULT|FILE", help="Start from torchvision's own weights, or from a state_dict's file."
)
@click.option(
    "--epochs",
    type=click.FloatRange(0, min_open=True),
    help="Passes over the images; 0.5 sees half of them.  [default: the recipe's]",
)
@click.option("--batch-size", type=click.IntRange(2), help="Images per step.  [default: the recipe's]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Its peak.  [default: the recipe's]")
@click.option("--size", type=Size(), help="Input size in pixels.  [default: the images', 64 at most]")
@COLOR_OPTION
@RESIZE_OPTION
@TEST_SPLIT_OPTION
@SEED_OPTION
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--preview", is_flag=True, help="Check every image, write preview.html, and train nothing.")
@click.option(
    "--skip-unreadable", is_flag=True, help="Leave out images that cannot be read; unreadable.csv lists them."
)
@click.option(
    "--cache",
    type=click.Choice(["auto", "memory", "disk", "none"]),
    default="auto",
    show_default=True,
    help="Where decoded images stay while training; none decodes them for each epoch.",
)
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=180,
    show_default=True,
    help="Keep a checkpoint so often within an epoch too.",
)
@click.option("--tensorboard", is_flag=True, help="Write event files too, into tensorboard/.")
@click.option("--resume", is_flag=True, help="Go on with a training that was cut off, from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace a finished model.")
@click.option(
    "--list-models",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_models,
    help="Name every model, and exit.",
)
@click.version_option(__version__, prog_name="clf-train")
def command(
    artifacts: str,
    data: str,
    data_root: str,
    model: str,
    weights: str | None,
    epochs: float | None,
    batch_size: int | None,
    learning_rate: float | None,
    size: tuple[int, int] | None,
    color: Color | None,
    resize: ResizeMode,
    test_split: float,
    seed: int,
    device: str,
    preview: bool,
    skip_unreadable: bool,
    cache: Cache,
    checkpoint_every: float,
    tensorboard: bool,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train an image classifier: a data set by name, or a folder with a folder of images for each class.

    Writes model.pt, model.json, history.csv, report.html and samples/ into the artifacts folder.
    """
    from pathlib import Path

    from clf_train.allocator import keep_freed_memory
    from clf_train.config import TrainConfig
    from clf_train.training import preview as write_preview
    from clf_train.training import train

    config = TrainConfig(
        data=data,
        data_root=data_root,
        model=model,
        weights=weights,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        size=size,
        color=color,
        resize=resize,
        test_split=test_split,
        seed=seed,
        device=device,
        cache=cache,
        skip_unreadable=skip_unreadable,
        overwrite=overwrite,
        resume=resume,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
        command=shlex.join(["clf-train", *sys.argv[1:]]),
    )
    folder = Path(artifacts)
    keep_freed_memory()
    with Progress() as progress:
        if preview:
            click.echo(f"{write_preview(config, folder, progress)}; without --preview the same command trains")
            return
        try:
            result = train(config, folder, progress)
        except (DataError, InvalidModelError, UsageError) as refusal:
            if is_main():
                raise
            sys.exit(refusal.exit_code)  # every process found the same; one tells it
    if is_main():
        _tell(result, artifacts)


def _tell(result: TrainResult, artifacts: str) -> None:
    metrics = result.spec.metrics
    assert metrics is not None
    where = "" if artifacts == "artifacts" else f" -a {shlex.quote(artifacts)}"
    click.echo(
        f"{metrics.accuracy:.2%} right on {metrics.images:,} held-out images, calibration error "
        f"{metrics.calibration_error:.2%} ({result.untempered.calibration_error:.2%} before the temperature); "
        f"{result.artifacts / 'model.pt'}, {result.artifacts / 'report.html'}; next: clf-export{where} --format onnx"
    )


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)


def is_main() -> bool:
    """Whether this process is the one that talks: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


class Progress:
    """Bars where a person waits at a terminal, plain lines elsewhere; nothing from torchrun's further processes."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._talks = is_main()
        self._terminal = self._talks and sys.stderr.isatty()
        self._epochs = 0.0
        self._images = 0  # of the whole training
        self._done = 0
        self._started = 0.0
        self._done_at_start = 0
        self._told = 0.0
        self._told_at = 0
        self._recent = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def decoding(self, images: int) -> None:
        """Images are about to be decoded."""
        if images:
            self._open(images, "decoding")

    def decoded(self, images: int) -> None:
        """So many more images were decoded."""
        if self._bar is not None:
            self._bar.update(images)

    def trainer(self, config: str, epochs: float, images: int, done: int) -> None:
        """Training begins, of so many images, each as often as it is seen; some of them may be done already."""
        self._close()
        self._epochs, self._images = epochs, images
        self._done = self._done_at_start = self._told_at = done
        self._started = self._told = time.monotonic()
        self._say(config)
        self._open(images, "training", done)

    def noticed(self, what: str) -> None:
        """Something that the person should know, and that stops nothing."""
        self._say(f"note: {what}")

    def stepped(self, images_done: int) -> None:
        """One more step was done."""
        if self._bar is not None:
            self._bar.update(images_done - self._done)
        self._done = images_done
        if self._bar is None and time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._say(f"{self._done / self._images:.0%} of the training done, {self._speed()}")

    def epoch(self, row: Epoch) -> None:
        """An epoch ended."""
        line = f"epoch {row.epoch}/{self._epochs:g}: loss {row.train_loss:.3f}, accuracy {row.train_accuracy:.2%}"
        if row.validation_accuracy is not None:
            line += f", validation {row.validation_accuracy:.2%}"
        if self._bar is not None:
            self._bar.set_description(line)
        else:
            self._say(f"{line}, {self._speed()}")

    def _speed(self) -> str:
        """Say how fast it goes since the last line, and how long it will take at the speed so far."""
        now = time.monotonic()
        if self._done > self._told_at:  # an epoch's line may follow another one with no step between them
            self._recent = (self._done - self._told_at) / max(now - self._told, 1e-9)
            self._told, self._told_at = now, self._done
        mean = (self._done - self._done_at_start) / max(now - self._started, 1e-9)
        left = f", {duration((self._images - self._done) / mean)} left" if mean and self._done < self._images else ""
        return f"{self._recent:,.0f} images/s{left}"

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self._talks:
            say(line)

    def _open(self, total: int, what: str, done: int = 0) -> None:
        if self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit=" images", dynamic_ncols=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
