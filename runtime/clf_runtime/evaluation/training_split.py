"""Find the test split of a training again, so that no model is evaluated on images that it was trained on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from clf_runtime.errors import ClfError, ImageError
from clf_runtime.labeled import Columns, ImageFile, LabeledImages, find_labeled_images
from clf_runtime.labeled.splits import SplitRule, select_split
from clf_runtime.spec import Provenance

_SMALLEST = 2  # as in training: a class of one image has no test image


def find_training_test_split(
    found: LabeledImages, source: Path, columns: Columns, provenance: Provenance | None
) -> list[int] | None:
    """Return the images that a training did not see, if it was a training on these very images.

    Args:
        found: Labeled images without a test split of their own.
        source: Where they were found.
        columns: Which columns of a manifest they were found by.
        provenance: Where the model comes from.

    Returns:
        Positions in `found`; None unless the fingerprint in the model shows that it was trained on these images.
    """
    if provenance is None or provenance.fingerprint is None:
        return None
    groups = _find_groups(found, source, columns, provenance)
    target_of = {label: target for target, label in enumerate(found.class_names)}
    targets = [target_of[label] for label in found.labels]
    selected = select_split(groups, targets, SplitRule(provenance.test_split, provenance.seed, "test", _SMALLEST))
    try:
        digests = list(map(_digest, found.locate(selected)))
    except (ImageError, OSError):
        return None  # evaluation reports it
    # As ImageSet.fingerprint in clf_train.
    classes = np.asarray([targets[position] for position in selected], "<i8")
    fingerprint = hashlib.sha256(classes.tobytes() + b"".join(digests)).hexdigest()
    return selected if fingerprint == provenance.fingerprint else None


def _find_groups(found: LabeledImages, source: Path, columns: Columns, provenance: Provenance) -> tuple[str, ...]:
    """Return the group of each image: those of the training, if it grouped images."""
    group_by = (provenance.columns or {}).get("group_by")
    if group_by is None:
        return found.names
    try:
        grouped = find_labeled_images(source, replace(columns, group_by=group_by))
    except ClfError:
        return found.names
    return grouped.groups if grouped.groups is not None and grouped.names == found.names else found.names


def _digest(file: ImageFile) -> bytes:
    return hashlib.sha256(Path(file).read_bytes() if isinstance(file, str) else file.read()).digest()
