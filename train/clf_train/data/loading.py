"""A data set's images, decoded once and all before the first epoch: what cannot be read is found then."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clf_runtime import artifacts, files
from clf_runtime.errors import DataError
from clf_runtime.spec import Preprocess
from clf_train.data.cache import ArrayPixels, CacheKind, LazyPixels, PixelStore, Shard, allocate_pixels
from clf_train.data.dataset import Dataset, FileImageSet, ImageSet
from clf_train.data.decoding import Decoded, Decoder, Unreadable
from clf_train.distributed import SINGLE_PROCESS, ProcessGroup

OnImages = Callable[[int], object]
Decode = Callable[[FileImageSet], Iterator[Decoded]]


@dataclass(frozen=True)
class LoadedDataset:
    """A data set without what cannot be read, and its images, or this process's share of them."""

    dataset: Dataset
    train: Shard
    validation: Shard
    test: Shard
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True)
class _LoadedPart:
    images: ImageSet  # all that can be read
    part: Shard  # of those, this process's share
    faults: list[Unreadable]  # everyone's


def load(
    dataset: Dataset,
    preprocess: Preprocess,
    place: CacheKind,
    folder: Path,
    group: ProcessGroup = SINGLE_PROCESS,
    on_images: OnImages = lambda count: None,
) -> LoadedDataset:
    """Decode every image of a data set, on all cores.

    Args:
        dataset: its train, validation and test parts.
        how: what the network takes.
        place: where the pixels stay until the training ends.
        folder: where files go whose place is the disk.
        team: the processes that share the work; each decodes its own part.
        on_images: called after some images, with their number.

    Raises MachineError, OSError.
    """
    parts = (dataset.train, dataset.validation, dataset.test)
    with Decoder(sum(map(len, parts))) as decoder:

        def decoded(images: FileImageSet) -> Iterator[Decoded]:
            for chunk in decoder.decoded(images.paths, preprocess):
                on_images(len(chunk.digests))
                yield chunk

        train, validation, test = (_loaded(part, preprocess, place, folder, group, decoded) for part in parts)
    return LoadedDataset(
        replace(dataset, train=train.images, validation=validation.images, test=test.images),
        train.part,
        validation.part,
        test.part,
        unreadable=(*train.faults, *validation.faults, *test.faults),
    )


def select_readable(images: ImageSet, preprocess: Preprocess) -> ImageSet:
    """Give the images that can be read. Raises MachineError."""
    if not isinstance(images, FileImageSet):
        return images
    with Decoder(len(images)) as decoder:
        faults = [fault for chunk in decoder.decoded(images.paths, preprocess) for fault in chunk.faults]
    return images.subset([index for index, fault in enumerate(faults) if fault is None])


def raise_if_class_lost(before: Dataset, after: Dataset) -> None:
    """Raise DataError where nothing of a class is left to train on, or to hold out."""
    for was, is_ in ((before.train, after.train), (before.test, after.test)):
        emptied = sorted(set(was.targets.tolist()) - set(is_.targets.tolist()))
        if emptied:
            count = int((was.targets == emptied[0]).sum())
            label = before.labels[emptied[0]]
            raise DataError(f"class {label!r}: none of {count} images of a part can be read; mend some")


def list_unreadable(folder: Path, faults: Sequence[Unreadable]) -> Path:
    """Write a file that names every image that cannot be read. Raises OSError."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "kind", "message"))
    rows.writerows((fault.path, fault.kind, fault.message) for fault in faults)
    path = folder / artifacts.UNREADABLE
    files.atomic_write(path, text.getvalue().encode("utf-8", "surrogateescape"))
    return path


def _loaded(
    images: ImageSet, preprocess: Preprocess, place: CacheKind, folder: Path, group: ProcessGroup, decoded: Decode
) -> _LoadedPart:
    mine = np.arange(group.rank, len(images), group.size)
    share = images.subset(mine.tolist()) if group.size > 1 else images
    if not isinstance(share, FileImageSet):
        array = share.decoded(preprocess) if len(share) else np.empty((0, *preprocess.shape), np.uint8)
        return _LoadedPart(images, Shard(ArrayPixels(array), share.targets, mine, len(images)), [])
    assert isinstance(images, FileImageSet)
    pixels, digests, faults = _filled(decoded(share), len(share), preprocess, place, folder)
    # What each process learnt of its share, put together by the images' places among all.
    found = {
        int(index): each
        for indices, of_share in group.all_gather((mine, [*zip(digests, faults, strict=True)]))
        for index, each in zip(indices, of_share, strict=True)
    }
    good = np.asarray([index for index in range(len(images)) if found[index][1] is None], dtype=np.int64)
    bad = [fault for _, fault in (found[index] for index in range(len(images))) if fault is not None]
    kept = [row for row, fault in enumerate(faults) if fault is None]
    known = images.with_digests([found[index][0] for index in range(len(images))])
    if place == "none":
        pixels = LazyPixels(share.subset(kept), preprocess)
    part = Shard(pixels, share.targets[kept], np.searchsorted(good, mine[kept]), len(good))
    return _LoadedPart(known.subset(good.tolist()), part, bad)


def _filled(
    chunks: Iterable[Decoded], count: int, preprocess: Preprocess, place: CacheKind, folder: Path
) -> tuple[PixelStore, list[bytes], list[Unreadable | None]]:
    """Put what can be read where it stays; gives the pixels, and the digest or the fault of each image."""
    room = allocate_pixels(0 if place == "none" else count, preprocess.shape, place, folder)
    digests: list[bytes] = []
    faults: list[Unreadable | None] = []
    filled = 0
    for chunk in chunks:
        if place != "none":
            room[filled : filled + len(chunk.pixels)] = chunk.pixels
            filled += len(chunk.pixels)
        digests += chunk.digests
        faults += chunk.faults
    return ArrayPixels(room[:filled]), digests, faults
