"""The mean and the standard deviation that the network expects: the user's, otherwise those of its weights."""

from __future__ import annotations

import math

from clf_runtime.errors import UsageError
from clf_runtime.spec import Normalize
from clf_train.config import InputOptions


def choose_normalize(options: InputOptions, default: Normalize) -> Normalize:
    """Return the user's mean and standard deviation of pixels in 0..1, and the default for what is open.

    Args:
        options: the user's choices: one value, or one for each channel.
        default: of the model.

    Raises:
        UsageError: a wrong number of values, or a value that no image can be normalized with.
    """
    channels = len(default.mean)
    if options.std is not None and min(options.std) <= 0:
        raise UsageError(f"--std: found {min(options.std):g}; expected numbers above 0, of pixels in 0..1")
    return Normalize(
        _repeat_per_channel("--mean", options.mean, channels) or default.mean,
        _repeat_per_channel("--std", options.std, channels) or default.std,
    )


def _repeat_per_channel(option: str, values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{option}: found {', '.join(map(str, values))}; expected finite numbers, of pixels in 0..1")
    if len(values) not in (1, channels):
        expected = "1 number" if channels == 1 else f"1 number, or {channels} (one for each channel)"
        raise UsageError(f"{option}: found {len(values)} numbers; expected {expected}")
    return values * channels if len(values) == 1 else values
