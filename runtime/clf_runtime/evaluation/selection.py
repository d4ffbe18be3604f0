"""Which of the labeled images are evaluated: those of one split, or all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clf_runtime.errors import DataError, ImageError
from clf_runtime.evaluation.formatting import format_images
from clf_runtime.evaluation.training_split import find_training_test_split
from clf_runtime.labeled import Columns, ImageFile, LabeledImages, find_labeled_images
from clf_runtime.labeled.shards import ShardRows
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.sources import ImageSource
from clf_runtime.spec import Provenance

SplitChoice = Literal["train", "validation", "test", "all"]
SPLIT_CHOICES: tuple[SplitChoice, ...] = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class EvalImages:
    """The images to evaluate, in the order of the data.

    Attributes:
        source: The folder, archive or manifest.
        split: Which split they are: train, validation, test or all.
        names: The name of each image, relative to the data's root, with / on every system.
        labels: The label of each image, as the data spells it.
        files: Where each image is.
        warnings: What a person should know about them, one line each.
        shards: Where they are if they are in shards.
    """

    source: Path
    split: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    files: tuple[ImageFile, ...]
    warnings: tuple[str, ...]
    shards: ShardRows | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def counts(self) -> Mapping[str, int]:
        """Label → number of images, sorted by label."""
        return dict(sorted(Counter(self.labels).items()))

    def sources(self, positions: Sequence[int]) -> Iterator[ImageSource]:
        """Yield the images at these positions; the members of an archive are read as they are needed."""
        shards = self.shards
        files = map(self.files.__getitem__, positions) if shards is None else shards.read(positions, self.names)
        for file in files:
            if isinstance(file, str):
                yield ImageSource(file, file)
                continue
            try:
                yield ImageSource(str(file), file.read())
            except ImageError as error:
                yield ImageSource(str(file), error)


def select_images(source: Path, columns: Columns, split: SplitChoice | None, models: Sequence[OnnxFile]) -> EvalImages:
    """Find labeled images and select a split of them.

    Args:
        source: A folder, an archive or a manifest.
        columns: Which columns of a manifest to read.
        split: The split. None selects the test split, which may be that of the training; without one the validation
            split; without both, all images.
        models: The models to evaluate.

    Raises:
        DataError: The source cannot be used, or has no such split.
        UsageError: `columns` does not apply to this source.
        OSError: A file or folder cannot be read.
    """
    found = find_labeled_images(source, columns)
    warnings = list(found.warnings)
    present = {own for own in found.splits if own is not None}
    unseen = None if present & {"test", "validation"} else _find_unseen(found, source, columns, models, warnings)
    if unseen is not None and split in (None, "test"):
        chosen, positions = "test", unseen
        if not unseen:
            raise DataError(
                f"{source}: the test splits of the models have no image in common; evaluate one model at a time, or "
                "all images with --split all"
            )
    else:
        chosen = split or _choose_split(found, warnings)
        positions = [position for position, own in enumerate(found.splits) if chosen in ("all", own)]
        if unseen is not None:
            warnings.append(f"{source}: the accuracy is too high, because training used most of these images")
    if not positions:
        raise _no_such_split(source, chosen, sorted(present))
    return EvalImages(
        source,
        chosen,
        tuple(found.names[position] for position in positions),
        tuple(found.labels[position] for position in positions),
        tuple(found.file(position) for position in positions),
        tuple(warnings),
        None if found.shards is None else found.shards.subset(np.asarray(positions)),
    )


def _find_unseen(
    found: LabeledImages, source: Path, columns: Columns, models: Sequence[OnnxFile], warnings: list[str]
) -> list[int] | None:
    """Return the images that no model was trained on, if any was trained on this data."""
    unseen: set[int] | None = None
    for model in models:
        positions = find_training_test_split(found, source, columns, model.spec.provenance)
        if positions is not None:
            warnings.append(
                f"{model.path}: was trained on this data; {format_images(len(positions))} of "
                f"{len(found.names):,} are its test split"
            )
            unseen = set(positions) if unseen is None else unseen & set(positions)
        elif _is_data_of_training(source, model.spec.provenance):
            warnings.append(
                f"{model.path}: was trained on {source}, whose images changed since; those that training used make "
                "the accuracy too high"
            )
    return None if unseen is None else sorted(unseen)


def _is_data_of_training(source: Path, provenance: Provenance | None) -> bool:
    data = None if provenance is None else provenance.data
    return data is not None and Path(data).resolve() == source.resolve()


def _no_such_split(source: Path, split: str, present: Sequence[str]) -> DataError:
    if present:
        return DataError(f"{source}: has no {split} split; expected one of {', '.join((*present, 'all'))} for --split")
    return DataError(f"{source}: its images are in no split; leave out --split {split} to evaluate all of them")


def _choose_split(found: LabeledImages, warnings: list[str]) -> SplitChoice:
    present = set(found.splits)
    if "test" in present:
        return "test"
    if "validation" in present:
        warnings.append("there is no test split; evaluating the validation split")
        return "validation"
    return "all"
