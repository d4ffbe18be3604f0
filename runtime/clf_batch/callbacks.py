"""What a caller learns while a run proceeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clf_batch.results import PartRecord


@dataclass(frozen=True)
class Callbacks:
    """Called as a run proceeds.

    Attributes:
        on_start: The first worker has loaded the model.
        on_part: The results of a shard are written.
        on_warning: Takes one line for people.
    """

    on_start: Callable[[], object]
    on_part: Callable[[PartRecord], object]
    on_warning: Callable[[str], object]
