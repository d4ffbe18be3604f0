"""A data set's pictures, decoded once and all before the first epoch: what cannot be read is found then."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clf_runtime import artifacts, files
from clf_runtime.errors import DataRefused
from clf_runtime.spec import Preprocess
from clf_train.dataset import Dataset, FilePictures, Pictures
from clf_train.decoding import Decoded, Decoder, Unreadable
from clf_train.pixels import DecodedAnew, HeldPixels, Part, Pixels, Place, room_for
from clf_train.team import ALONE, Team

OnPictures = Callable[[int], object]
Decode = Callable[[FilePictures], Iterator[Decoded]]


@dataclass(frozen=True)
class Loaded:
    """A data set without what cannot be read, and its pictures, or this process's share of them."""

    dataset: Dataset
    train: Part
    validation: Part
    test: Part
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True)
class _LoadedPart:
    pictures: Pictures  # all that can be read
    part: Part  # of those, this process's share
    faults: list[Unreadable]  # everyone's


def load(
    dataset: Dataset,
    how: Preprocess,
    place: Place,
    folder: Path,
    team: Team = ALONE,
    on_pictures: OnPictures = lambda count: None,
) -> Loaded:
    """Decode every picture of a data set, on all cores.

    Args:
        dataset: its train, validation and test parts.
        how: what the network takes.
        place: where the pixels stay until the training ends.
        folder: where files go whose place is the disk.
        team: the processes that share the work; each decodes its own part.
        on_pictures: called after some pictures, with their number.

    Raises MachineUnable, OSError.
    """
    parts = (dataset.train, dataset.validation, dataset.test)
    with Decoder(sum(map(len, parts))) as decoder:

        def decoded(pictures: FilePictures) -> Iterator[Decoded]:
            for chunk in decoder.decoded(pictures.paths, how):
                on_pictures(len(chunk.digests))
                yield chunk

        train, validation, test = (_loaded(part, how, place, folder, team, decoded) for part in parts)
    return Loaded(
        replace(dataset, train=train.pictures, validation=validation.pictures, test=test.pictures),
        train.part,
        validation.part,
        test.part,
        unreadable=(*train.faults, *validation.faults, *test.faults),
    )


def readable(pictures: Pictures, how: Preprocess) -> Pictures:
    """Give the pictures that can be read. Raises MachineUnable."""
    if not isinstance(pictures, FilePictures):
        return pictures
    with Decoder(len(pictures)) as decoder:
        faults = [fault for chunk in decoder.decoded(pictures.paths, how) for fault in chunk.faults]
    return pictures.subset([index for index, fault in enumerate(faults) if fault is None])


def refuse_emptied(before: Dataset, after: Dataset) -> None:
    """Raise DataRefused where nothing of a class is left to train on, or to hold out."""
    for was, is_ in ((before.train, after.train), (before.test, after.test)):
        emptied = sorted(set(was.targets.tolist()) - set(is_.targets.tolist()))
        if emptied:
            count = int((was.targets == emptied[0]).sum())
            label = before.labels[emptied[0]]
            raise DataRefused(f"class {label!r}: none of {count} pictures of a part can be read; mend some")


def list_unreadable(folder: Path, faults: Sequence[Unreadable]) -> Path:
    """Write a file that names every picture that cannot be read. Raises OSError."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "kind", "message"))
    rows.writerows((fault.path, fault.kind, fault.message) for fault in faults)
    path = folder / artifacts.UNREADABLE
    files.write(path, text.getvalue().encode("utf-8", "surrogateescape"))
    return path


def _loaded(
    pictures: Pictures, how: Preprocess, place: Place, folder: Path, team: Team, decoded: Decode
) -> _LoadedPart:
    mine = np.arange(team.rank, len(pictures), team.size)
    share = pictures.subset(mine.tolist()) if team.size > 1 else pictures
    if not isinstance(share, FilePictures):
        array = share.decoded(how) if len(share) else np.empty((0, *how.shape), np.uint8)
        return _LoadedPart(pictures, Part(HeldPixels(array), share.targets, mine, len(pictures)), [])
    assert isinstance(pictures, FilePictures)
    pixels, digests, faults = _filled(decoded(share), len(share), how, place, folder)
    # What each process learnt of its share, put together by the pictures' places among all.
    found = {
        int(index): each
        for indices, of_share in team.gathered((mine, [*zip(digests, faults, strict=True)]))
        for index, each in zip(indices, of_share, strict=True)
    }
    good = np.asarray([index for index in range(len(pictures)) if found[index][1] is None], dtype=np.int64)
    bad = [fault for _, fault in (found[index] for index in range(len(pictures))) if fault is not None]
    kept = [row for row, fault in enumerate(faults) if fault is None]
    known = pictures.with_digests([found[index][0] for index in range(len(pictures))])
    if place == "none":
        pixels = DecodedAnew(share.subset(kept), how)
    part = Part(pixels, share.targets[kept], np.searchsorted(good, mine[kept]), len(good))
    return _LoadedPart(known.subset(good.tolist()), part, bad)


def _filled(
    chunks: Iterable[Decoded], count: int, how: Preprocess, place: Place, folder: Path
) -> tuple[Pixels, list[bytes], list[Unreadable | None]]:
    """Put what can be read where it stays; gives the pixels, and the digest or the fault of each picture."""
    room = room_for(0 if place == "none" else count, how.shape, place, folder)
    digests: list[bytes] = []
    faults: list[Unreadable | None] = []
    filled = 0
    for chunk in chunks:
        if place != "none":
            room[filled : filled + len(chunk.pixels)] = chunk.pixels
            filled += len(chunk.pixels)
        digests += chunk.digests
        faults += chunk.faults
    return HeldPixels(room[:filled]), digests, faults
