"""Which label of a model each label of the data is. Labels are compared by name, never by position."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clf_runtime.errors import DataError

_SHOWN = 5


@dataclass(frozen=True)
class LabelMatch:
    """The labels of the data and of a model, matched.

    Attributes:
        targets: Label of the data → position of the model's label.
        respelled: Label of the data → the model's label, where they differ in case, spaces, hyphens or underscores.
        unknown: Labels of the data that the model does not have, sorted.
        unused: Labels of the model that the data does not have, in the model's order.
    """

    targets: Mapping[str, int]
    respelled: Mapping[str, str]
    unknown: tuple[str, ...]
    unused: tuple[str, ...]


def match_labels(data_labels: Iterable[str], model_labels: Sequence[str], names: tuple[str, str]) -> LabelMatch:
    """Match labels that are equal, then those that differ only in case, spaces, hyphens or underscores.

    Args:
        data_labels: The labels of the data.
        model_labels: Those of the model.
        names: How the data and the model are called in the error.

    Raises:
        DataError: No label of the data is one of the model's.
    """
    wanted = sorted(set(data_labels))
    positions = {label: position for position, label in enumerate(model_labels)}
    folded = Counter(map(fold_label, model_labels))
    by_fold = {fold_label(label): label for label in model_labels if folded[fold_label(label)] == 1}
    respelled = {
        label: by_fold[fold_label(label)] for label in wanted if label not in positions and fold_label(label) in by_fold
    }
    targets = {label: positions[respelled.get(label, label)] for label in wanted if label in positions | respelled}
    if not targets:
        data, model = names
        raise DataError(
            f"{data}: none of its labels is one of {model} (found {list_labels(wanted)}; expected "
            f"{list_labels(model_labels)}); name the data of this model"
        )
    return LabelMatch(
        targets=targets,
        respelled=respelled,
        unknown=tuple(label for label in wanted if label not in targets),
        unused=tuple(label for label in model_labels if positions[label] not in targets.values()),
    )


def list_labels(labels: Sequence[str]) -> str:
    """Return the first few labels, in one line."""
    more = f" and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else ""
    return ", ".join(label if label.isprintable() else ascii(label) for label in labels[:_SHOWN]) + more


def suggest_label(label: str, model_labels: Sequence[str]) -> str | None:
    """Return the label of the model that a misspelled one may mean."""
    by_fold = {fold_label(candidate): candidate for candidate in model_labels}
    close = difflib.get_close_matches(fold_label(label), list(by_fold), 1, cutoff=0.75)
    return by_fold[close[0]] if close else None


def fold_label(label: str) -> str:
    """Return what labels have in common that differ only in case, spaces, hyphens or underscores."""
    text = unicodedata.normalize("NFC", label).casefold().strip()
    return re.sub(r"(?<=[^\s_-])[\s_-]+(?=[^\s_-])", "", text)  # only between others: -1 is not 1
