"""Near-duplicates: pairs of images that a pretrained network hardly tells apart, such as a burst of a camera."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from clf_runtime.preprocess import UInt8Array
from clf_train.data.dataset import Int64Array
from clf_train.engine.features import Float32Array

# Measured on 3,409 photos of clothes (5.8 million pairs) and 110 of them, changed. Two pairs of photos are as similar
# as the first limit, a copy among them; it finds 93 % of mirrored copies and half of those cropped by 3 %. The two
# others together find no pair but the copy; and all compressed or brightened copies, and 81 % of the halved ones.
_MIN_SIMILARITY = 0.92
_MIN_SIMILARITY_OF_EQUAL_HASHES = 0.7
_MAX_BITS = 25  # of 256 that differ in two hashes

_BLOCK = 1024  # rows compared at a time: 1024 x 50,000 similarities take 200 MB
# Images are compared in this many dimensions first, which takes a seventh of the time.
_PROJECTED = 192
_CHUNK = 8192  # pairs compared in all dimensions at a time
# A folder of copies has millions of pairs; the first ones say as much.
_MAX_PAIRS, _MAX_CANDIDATES = 20_000, 5_000_000


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that are nearly the same."""

    first: int  # of the pool, the smaller one
    second: int
    similarity: float  # the cosine of their centered features, -1..1


def find_duplicates(features: Float32Array, hashes: UInt8Array | None = None) -> tuple[DuplicatePair, ...]:
    """Return the pairs of nearly equal images, the most similar first.

    Args:
        features: of the images, (N, D).
        hashes: perceptual hashes of the images, uint8 (N, 32). With them, two images also count as nearly the same if
            their hashes agree and their features are similar; copies of lower quality are found only in this way.
    """
    directions = _normalize(features)
    projected = directions @ _find_axes(directions)
    pairs: list[DuplicatePair] = []
    candidates = 0
    limit = _MIN_SIMILARITY if hashes is None else _MIN_SIMILARITY_OF_EQUAL_HASHES
    for first, second in _find_candidates(projected, limit):
        similarities = (directions[first] * directions[second]).sum(dim=1).numpy()
        kept = similarities >= _MIN_SIMILARITY
        if hashes is not None:
            bits = np.unpackbits(hashes[first] ^ hashes[second], axis=1).sum(axis=1)
            kept |= (similarities >= _MIN_SIMILARITY_OF_EQUAL_HASHES) & (bits <= _MAX_BITS)
        found = zip(first[kept].tolist(), second[kept].tolist(), similarities[kept].tolist(), strict=True)
        pairs += [DuplicatePair(*pair) for pair in found]
        candidates += len(first)
        if len(pairs) >= _MAX_PAIRS or candidates >= _MAX_CANDIDATES:
            break
    return tuple(sorted(pairs, key=lambda pair: -pair.similarity)[:_MAX_PAIRS])


def group_duplicates(count: int, pairs: tuple[DuplicatePair, ...]) -> Int64Array:
    """Return for each of `count` images the smallest image that a chain of pairs connects it with, (N,)."""
    parents = list(range(count))

    def find(image: int) -> int:
        while parents[image] != image:
            parents[image] = parents[parents[image]]
            image = parents[image]
        return image

    for pair in pairs:
        low, high = sorted((find(pair.first), find(pair.second)))
        parents[high] = low
    return np.asarray([find(image) for image in range(count)], dtype=np.int64)


def _normalize(features: Float32Array) -> torch.Tensor:
    centered = torch.from_numpy(features - features.mean(axis=0))
    return torch.nn.functional.normalize(centered, dim=1)


def _find_axes(directions: torch.Tensor) -> torch.Tensor:
    """Return orthonormal axes (D, d) along which the directions vary most."""
    # eigh sorts ascending; the covariance of D features is small, however many images there are. In float64, since for
    # fewer images than features most eigenvalues are zero, and torch's solver then fails to converge in float32.
    values = directions.double().numpy()
    _, vectors = np.linalg.eigh(values.T @ values)
    return torch.from_numpy(vectors[:, -_PROJECTED:].astype(np.float32))


def _find_candidates(projected: torch.Tensor, min_similarity: float) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Yield pairs of images (first, second), some at a time, among which are all similar ones.

    A projection never enlarges a distance, so two unit vectors with a cosine of at least c are at most sqrt(2 - 2c)
    apart in it, too: no pair is missed.
    """
    limit = 2 - 2 * min_similarity + 1e-5
    squares = projected.square().sum(dim=1)
    for start in range(0, len(projected), _BLOCK):
        block = projected[start : start + _BLOCK]
        # |a - b|² = |a|² + |b|² - 2 a·b
        distances = torch.addmm(squares[start:], block, projected[start:].T, alpha=-2)
        near = distances <= limit - squares[start : start + _BLOCK, None]
        yield from _split(*(places.numpy() + start for places in near.nonzero(as_tuple=True)))


def _split(first: Int64Array, second: Int64Array) -> Iterator[tuple[Int64Array, Int64Array]]:
    later = second > first
    first, second = first[later], second[later]
    for start in range(0, len(first), _CHUNK):
        yield first[start : start + _CHUNK], second[start : start + _CHUNK]
