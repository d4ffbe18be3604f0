"""The runtime's pipeline: pictures in, predictions out, in order, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clf_runtime import onnx_file
from clf_runtime.errors import ModelRefused, PictureRefused
from clf_runtime.machine import usable_cores
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.pictures import Named
from clf_runtime.predictions import Failure, Prediction, Result, Score
from clf_runtime.preprocess import Picture, UInt8Array, pixels_from_picture
from clf_runtime.session import Float32Array, Session
from clf_runtime.spec import ModelSpec

if TYPE_CHECKING:
    from concurrent.futures import Future

# Measured in the design: 8 pictures a batch is where MobileNetV3-small and ResNet-18 stop getting faster.
BATCH_SIZE = 8

# Chunks under way per worker: one that runs, one that waits, so that no worker idles while results are taken.
_CHUNKS_PER_WORKER = 2


class Classifier:
    """An exported model, opened on this machine. Its methods may be called from several threads.

    Examples:
        >>> classifier = Classifier.load("model.onnx", device="cpu")  # doctest: +SKIP
        >>> classifier.predict("img.jpg").label  # doctest: +SKIP
        '7'
    """

    def __init__(self, file: OnnxFile, spec: ModelSpec, session: Session, workers: int) -> None:
        """Use `load` instead."""
        self.file = file
        self.spec = spec
        self._session = session
        self._workers = workers

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        workers: int = 1,
    ) -> Classifier:
        """Open an exported ONNX file, once its digest and its spec are checked.

        Args:
            model: the file that clf-export made.
            device: cpu, cuda or cuda:N, which must work, or auto, which takes CUDA where it works.
            threads: cores to use; by default all that this process may use.
            workers: pictures under way at once in `predict_files`. 1 gives every core to one picture at a
                time (the shortest wait); as many as threads gives each its own (the most pictures a second).

        Raises:
            ModelRefused: the file is missing, damaged, foreign, or too new for this onnxruntime.
            MachineUnable: the device does not work here.
        """
        file = onnx_file.read(Path(model))
        spec = ModelSpec.from_json(file.metadata[onnx_file.SPEC_KEY], str(model))
        threads = max(1, usable_cores() if threads is None else threads)
        session = Session(file, device, max(1, threads // workers))
        _refuse_misfit(file, spec, session)
        return cls(file, spec, session, workers)

    @property
    def provider(self) -> str:
        """The execution provider that runs, by onnxruntime's name."""
        return self._session.provider

    def predict(self, picture: Picture, top: int = 1) -> Prediction:
        """Classify one picture: a path, a picture file's bytes, an open file, a PIL image or a uint8 array.

        Raises PictureRefused.
        """
        pixels = pixels_from_picture(picture, self.spec.preprocess)
        _, probabilities = self._session.run(pixels[None])
        path = os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else None
        return self._prediction(path, probabilities[0], top)

    def logits(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        return self._session.run(pixels)

    def predict_files(
        self, paths: Iterable[str | os.PathLike[str]], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> Iterator[Result]:
        """Classify files lazily, in order. A file that cannot be read gives a Failure in its place."""
        names = (os.fspath(path) for path in paths)
        return self.predict_named((Named(name, name) for name in names), batch_size=batch_size, top=top)

    def predict_named(
        self, pictures: Iterable[Named], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> Iterator[Result]:
        """Classify what `clf_runtime.pictures` found, lazily, in order."""
        chunks = _chunks(iter(pictures), batch_size)
        for results in _in_order(lambda chunk: self._classify(chunk, top), chunks, self._workers):
            yield from results

    def _classify(self, chunk: list[Named], top: int) -> list[Result]:
        """Decode a chunk and run what could be decoded as one batch; failures keep their places."""
        decoded = [_pixels_or_failure(each, self.spec) for each in chunk]
        pixels = [each for each in decoded if isinstance(each, np.ndarray)]
        rows = iter(self._session.run(np.stack(pixels))[1] if pixels else ())
        return [
            each if isinstance(each, Failure) else self._prediction(named.name, next(rows), top)
            for named, each in zip(chunk, decoded, strict=True)
        ]

    def _prediction(self, path: str | None, probabilities: Float32Array, top: int) -> Prediction:
        labels = self.spec.labels
        best = np.argsort(-probabilities, kind="stable")[: max(1, top)] if top > 1 else [probabilities.argmax()]
        scores = tuple(Score(labels[index], float(probabilities[index])) for index in best)
        return Prediction(path, scores[0].label, int(best[0]), scores[0].score, scores, self.provider)


def _pixels_or_failure(named: Named, spec: ModelSpec) -> UInt8Array | Failure:
    try:
        if isinstance(named.source, PictureRefused):
            raise named.source
        return pixels_from_picture(named.source, spec.preprocess)
    except PictureRefused as refusal:
        return Failure(named.name, refusal.kind, str(refusal))


def _chunks(pictures: Iterator[Named], size: int) -> Iterator[list[Named]]:
    while chunk := list(islice(pictures, size)):
        yield chunk


def _in_order(
    work: Callable[[list[Named]], list[Result]], chunks: Iterator[list[Named]], workers: int
) -> Iterator[list[Result]]:
    """Map `work` over `chunks` in `workers` threads, each chunk decoded and run by the same thread.

    A thread per core that does all of a chunk's work left no core waiting (0.98 of the limit); threads that
    decode for one that runs reached 0.55 to 0.92.
    """
    if workers == 1:
        yield from map(work, chunks)
        return
    from concurrent.futures import ThreadPoolExecutor  # 4 ms that one picture does not need

    pool = ThreadPoolExecutor(workers, thread_name_prefix="clf")
    under_way: deque[Future[list[Result]]] = deque()
    try:
        for chunk in chunks:
            under_way.append(pool.submit(work, chunk))
            if len(under_way) >= workers * _CHUNKS_PER_WORKER:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _refuse_misfit(file: OnnxFile, spec: ModelSpec, session: Session) -> None:
    shape, outputs = session.image_shape, session.classes
    if shape != spec.preprocess.shape or outputs != len(spec.labels):
        raise ModelRefused(
            f"{file.path}: refused: its graph takes {shape} and gives {outputs} classes, its spec says "
            f"{spec.preprocess.shape} and {len(spec.labels)} labels; export it again"
        )
