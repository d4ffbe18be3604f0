"""--mean and --std, for clf-train and clf-import."""

from __future__ import annotations

import click


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic from click 8.5 on
    """One number, or one for each channel, separated by commas."""

    name = "X[,Y,Z]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        try:
            return tuple(float(text) for text in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a number; expected 0.5 or 0.485,0.456,0.406, for example.", param, ctx)


MEAN_OPTION = click.option(
    "--mean",
    type=Numbers(),
    help="Mean of pixels in 0..1 that the weights were trained with.  [default: the model's]",
)
STD_OPTION = click.option(
    "--std", type=Numbers(), help="Standard deviation of pixels in 0..1, likewise.  [default: the model's]"
)
