"""Decode all images of a data set once, before the first epoch, so that unreadable images are found then."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clf_runtime import artifacts, files
from clf_runtime.errors import DataError
from clf_runtime.spec import Preprocess
from clf_train.data.cache import ArrayPixels, LazyPixels, PixelCache, PixelStore, Shard
from clf_train.data.dataset import Dataset, FileImageSet, ImageSet, Int64Array
from clf_train.data.decoding import DecodedChunk, Decoder, UnreadableImage
from clf_train.data.facts import ImageFacts, empty_facts, join_facts
from clf_train.distributed import SINGLE_PROCESS, ProcessGroup
from clf_train.portable import portable_member

OnDecode = Callable[[int], object]


@dataclass(frozen=True)
class LoadedDataset:
    """The readable images of a data set, decoded; under torchrun, this process's share of them."""

    dataset: Dataset  # only the readable images, of all processes
    train: Shard
    validation: Shard
    test: Shard
    unreadable: tuple[UnreadableImage, ...]  # of all processes
    facts: tuple[ImageFacts, ImageFacts, ImageFacts]  # about the images of `dataset.splits`; none if they are no files


def decode_dataset(
    dataset: Dataset,
    preprocess: Preprocess,
    cache: PixelCache,
    group: ProcessGroup = SINGLE_PROCESS,
    on_decode: OnDecode = lambda images: None,
) -> LoadedDataset:
    """Decode every image of a data set, on all cores.

    Args:
        dataset: its training, validation and test split.
        preprocess: the input of the network.
        cache: where the pixels stay until the training ends.
        group: the processes that share the work; each decodes its own share.
        on_decode: called after some images, with their number.

    Raises:
        MachineError: the system killed a decoding process.
        OSError: the disk has no room for the cache.
    """
    with Decoder(sum(map(len, dataset.splits))) as decoder:
        split_decoder = _SplitDecoder(decoder, preprocess, cache, group, on_decode)
        train, validation, test = (split_decoder.decode(split) for split in dataset.splits)
    return LoadedDataset(
        replace(dataset, train=train.images, validation=validation.images, test=test.images),
        train.shard,
        validation.shard,
        test.shard,
        unreadable=(*train.unreadable, *validation.unreadable, *test.unreadable),
        facts=(train.facts, validation.facts, test.facts),
    )


def select_readable(images: ImageSet, preprocess: Preprocess) -> ImageSet:
    """Return the images that can be decoded.

    Raises:
        MachineError: the system killed a decoding process.
    """
    if not isinstance(images, FileImageSet):
        return images
    with Decoder(len(images)) as decoder:
        errors = [error for chunk in decoder.decode(images.files, preprocess) for error in chunk.errors]
    return images.subset([index for index, error in enumerate(errors) if error is None])


def raise_if_class_lost(before: Dataset, after: Dataset) -> None:
    """Raise DataError if no image of a class is readable in the training or the test split."""
    for name, complete, readable in (("training", before.train, after.train), ("test", before.test, after.test)):
        lost = sorted(set(complete.targets.tolist()) - set(readable.targets.tolist()))
        if lost:
            count = int((complete.targets == lost[0]).sum())
            label = before.labels[lost[0]]
            raise DataError(f"class {label!r}: none of {count} images of its {name} split can be read; repair some")


def write_unreadable(folder: Path, unreadable: Sequence[UnreadableImage], data: str) -> Path:
    """Write unreadable.csv, which lists every image that cannot be read; `data` is the data source as it was typed.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "kind", "message"))
    rows.writerows((portable_member(error.path, data), error.kind, error.message) for error in unreadable)
    path = folder / artifacts.UNREADABLE
    files.atomic_write(path, text.getvalue().encode("utf-8", "surrogateescape"))
    return path


@dataclass(frozen=True)
class _DecodedSplit:
    """One split after decoding."""

    images: ImageSet  # all readable ones
    shard: Shard  # this process's share of them
    unreadable: list[UnreadableImage]  # of all processes
    facts: ImageFacts  # about all readable ones


@dataclass(frozen=True)
class _DecodedShare:
    """One process's share of a split after decoding; digests, errors and facts have one entry for each file."""

    pixels: PixelStore
    digests: list[bytes]
    errors: list[UnreadableImage | None]
    facts: ImageFacts


@dataclass(frozen=True)
class _SplitDecoder:
    """Decodes this process's share of a split and exchanges the results with the other processes."""

    decoder: Decoder
    preprocess: Preprocess
    cache: PixelCache
    group: ProcessGroup
    on_decode: OnDecode

    def decode(self, images: ImageSet) -> _DecodedSplit:
        """Decode one split."""
        indices = self._find_share(images)
        share = images.subset(indices.tolist()) if self.group.size > 1 else images
        if isinstance(share, FileImageSet):
            assert isinstance(images, FileImageSet)
            return self._decode_files(images, share, indices)
        array = share.decode(self.preprocess) if len(share) else np.empty((0, *self.preprocess.shape), np.uint8)
        return _DecodedSplit(images, Shard(ArrayPixels(array), share.targets, indices, len(images)), [], empty_facts(0))

    def _find_share(self, images: ImageSet) -> Int64Array:
        """Return this process's images: every n-th one, or the same number in whole blocks."""
        blocks = images.blocks if isinstance(images, FileImageSet) else None
        if blocks is not None:
            return blocks.share(self.group.rank, self.group.size)
        return np.arange(self.group.rank, len(images), self.group.size)

    def _decode_files(self, images: FileImageSet, share: FileImageSet, indices: Int64Array) -> _DecodedSplit:
        decoded = self._fill_cache(share)
        # What each process found in its share, by the place of the image in the split.
        digests = [b""] * len(images)
        errors: list[UnreadableImage | None] = [None] * len(images)
        facts = empty_facts(len(images))
        parts = self.group.all_gather((indices, decoded.digests, decoded.errors, decoded.facts))
        for places, share_digests, share_errors, share_facts in parts:
            facts.fill(places, share_facts)
            for place, digest, error in zip(places.tolist(), share_digests, share_errors, strict=True):
                digests[place], errors[place] = digest, error
        readable = np.asarray([place for place, error in enumerate(errors) if error is None], dtype=np.int64)
        rows = [row for row, error in enumerate(decoded.errors) if error is None]
        pixels = decoded.pixels
        if self.cache.kind == "none":
            pixels = LazyPixels(share.subset(rows), self.preprocess)
        unreadable = [error for error in errors if error is not None]
        images = images.with_digests(digests).subset(readable.tolist())
        places = np.searchsorted(readable, indices[rows])
        shard = Shard(pixels, share.targets[rows], places, len(readable), images.blocks)
        return _DecodedSplit(images, shard, unreadable, facts.subset(readable.tolist()))

    def _fill_cache(self, share: FileImageSet) -> _DecodedShare:
        """Decode files into the cache."""
        keeps_pixels = self.cache.kind != "none"
        array = self.cache.allocate(len(share) if keeps_pixels else 0, self.preprocess.shape)
        digests: list[bytes] = []
        errors: list[UnreadableImage | None] = []
        facts: list[ImageFacts] = []
        filled = 0
        for chunk in self._decode_chunks(share):
            if keeps_pixels:
                array[filled : filled + len(chunk.pixels)] = chunk.pixels
                filled += len(chunk.pixels)
            digests += chunk.digests
            errors += chunk.errors
            facts.append(chunk.facts)
        return _DecodedShare(ArrayPixels(array[:filled]), digests, errors, join_facts(facts))

    def _decode_chunks(self, share: FileImageSet) -> Iterator[DecodedChunk]:
        for chunk in self.decoder.decode(share.files, self.preprocess):
            self.on_decode(len(chunk.digests))
            yield chunk
