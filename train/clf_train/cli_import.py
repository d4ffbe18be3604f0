"""`clf-import`: a state_dict trained elsewhere to a finished artifacts folder. Parses, calls, prints."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from clf_runtime import __version__
from clf_runtime.command import ARTIFACTS_OPTION, execute
from clf_train.cli import COLOR_OPTION, DATA_ROOT_OPTION, RESIZE_OPTION, SEED_OPTION, TEST_SPLIT_OPTION, Size

if TYPE_CHECKING:
    from clf_runtime.spec import Color, ResizeMode


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic from click 8.5 on
    """One number, or one for each channel, with commas."""

    name = "X[,Y,Z]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Give the numbers."""
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no number; expected like 0.5 or 0.485,0.456,0.406.", param, ctx)


@click.command(
    "clf-import",
    epilog="""\b
Examples:
  clf-import --weights net.pt --model lenet --labels classes.txt
  clf-import --weights best.ckpt --model resnet18 --labels cat,dog --data photos/
  clf-import --weights mine.safetensors --model mypackage.net:build --labels a,b,c
             --size 96x128 --color RGB --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

\b
Exit codes: 0 done, 2 wrong usage, 3 weights or data refused,
4 this machine cannot do it, 130 Ctrl-C (nothing is written).""",
)
@ARTIFACTS_OPTION
@click.option("--weights", required=True, metavar="FILE", help="A state_dict, a checkpoint with one, or safetensors.")
@click.option(
    "--model",
    required=True,
    metavar="NAME|PACKAGE.MODULE:FACTORY",
    help="One of clf-train --list-models, or a function of your own.",
)
@click.option("--labels", required=True, metavar="A,B,C|FILE", help="In output order; a file has one on each line.")
@click.option("--size", type=Size(), help="Input size in pixels.  [default: the model's]")
@COLOR_OPTION
@RESIZE_OPTION
@click.option("--mean", type=Numbers(), help="Of pixels in 0..1, as in training.  [default: the model's]")
@click.option("--std", type=Numbers(), help="Likewise.")
@click.option("--data", "-d", metavar="NAME|DIR", help="Labelled images: tells the accuracy, fits the temperature.")
@DATA_ROOT_OPTION
@TEST_SPLIT_OPTION
@SEED_OPTION
@click.option("--overwrite", is_flag=True, help="Replace a finished model.")
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
    test_split: float,
    seed: int,
    overwrite: bool,
) -> None:
    """Bring in a state_dict that was trained elsewhere, so that clf-export can prove and export it."""
    from pathlib import Path

    from clf_train.config import TrainConfig
    from clf_train.importing import Origin, import_model, labels_from

    config = TrainConfig(
        data=data or "",
        data_root=data_root,
        model=model,
        size=size,
        color=color,
        resize=resize,
        test_split=test_split,
        seed=seed,
        command=shlex.join(["clf-import", *sys.argv[1:]]),
    )
    origin = Origin(Path(weights), labels_from(labels), mean, std)
    folder = Path(artifacts)
    spec = import_model(origin, config, folder, with_data=data is not None, overwrite=overwrite)
    reached = f"{spec.metrics.accuracy:.2%} right on {spec.metrics.images:,} held-out images; " if spec.metrics else ""
    where = "" if artifacts == "artifacts" else f" -a {shlex.quote(artifacts)}"
    proof = "" if data is not None else " --data NAME|DIR"
    click.echo(
        f"{reached}{folder / 'model.pt'}, {len(spec.labels)} labels; next: clf-export{where}{proof} --format onnx"
    )


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)
