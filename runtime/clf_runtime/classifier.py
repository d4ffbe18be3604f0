"""The runtime's pipeline: images in, predictions out, in order, with bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from clf_runtime import onnx_file
from clf_runtime.decoding import Decode
from clf_runtime.errors import InvalidModelError
from clf_runtime.machine import usable_cores
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.pipeline import run_pipeline
from clf_runtime.predictions import Failure, Prediction, Result, Score
from clf_runtime.preprocess import ImageInput, UInt8Array, pixels_from_image
from clf_runtime.session import Float32Array, Session
from clf_runtime.sources import ImageSource
from clf_runtime.spec import ModelSpec

# Measured in the design: 8 images a batch is where MobileNetV3-small and ResNet-18 stop getting faster.
BATCH_SIZE = 8


class Classifier:
    """An exported model, opened on this machine. Its methods may be called from several threads.

    It takes its memory until `close`, or until the end of a `with` block.

    Examples:
        >>> classifier = Classifier.load("model.onnx", device="cpu")  # doctest: +SKIP
        >>> classifier.predict("img.jpg").label  # doctest: +SKIP
        '7'
    """

    def __init__(self, file: OnnxFile, spec: ModelSpec, session: Session, workers: int) -> None:
        """Use `load` instead."""
        self.file = file
        self.spec = spec
        self._provider = session.provider
        self._open_session: Session | None = session
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
            device: cpu, cuda, cuda:N, or another execution provider of onnxruntime by its short name (openvino,
                tensorrt …), which must work; or auto, which takes CUDA where it works.
            threads: cores to use; by default all that this process may use.
            workers: images under way at once in `predict_files`. 1 gives every core to one image at a
                time (the shortest wait); as many as threads gives each its own (the most images a second).

        Raises:
            InvalidModelError: the file is missing, damaged, foreign, or too new for this onnxruntime.
            MachineError: the device does not work here.
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
        return self._provider

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back, once predictions under way in other threads have ended.

        Any later prediction raises ValueError, as reading from a closed file does.
        """
        self._open_session = None

    @property
    def _session(self) -> Session:
        if self._open_session is None:
            raise ValueError("this Classifier is closed")
        return self._open_session

    @property
    def warning(self) -> str:
        """Why `auto` took the CPU although onnxruntime has CUDA built in, in one line; else nothing."""
        return self._session.warning

    def predict(self, image: ImageInput, top: int = 1) -> Prediction:
        """Classify one image: a path, an image file's bytes, an open file, a PIL image or a uint8 array.

        Raises ImageError.
        """
        pixels = pixels_from_image(image, self.spec.preprocess)
        return Prediction(_path(image), *next(self._answers(pixels[None], top)), self.provider)

    def predict_batch(
        self, images: Iterable[ImageInput], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> list[Result]:
        """Classify several images of any kind that `predict` takes; one that cannot be read gives a Failure."""
        given = list(images)
        named = (ImageSource(_path(each) or "", each) for each in given)
        results = self.predict_sources(named, batch_size=batch_size, top=top)
        return [replace(result, path=_path(each)) for each, result in zip(given, results, strict=True)]

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        return self._session.run(pixels)

    def predict_files(
        self, paths: Iterable[str | bytes | os.PathLike[str]], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> Iterator[Result]:
        """Classify files lazily, in order. A file that cannot be read gives a Failure in its place.

        `paths` may be any iterable, endless too; a few chunks of `batch_size` are taken ahead of the results.
        """
        names = (os.fsdecode(path) for path in paths)
        return self.predict_sources((ImageSource(name, name) for name in names), batch_size=batch_size, top=top)

    def predict_sources(
        self, images: Iterable[ImageSource], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> Iterator[Result]:
        """Classify what `clf_runtime.sources` found, lazily, in order."""

        def classify(chunk: list[ImageSource], decode: Decode) -> list[Result]:
            return self._classified(chunk, decode, batch_size, top)

        return run_pipeline(iter(images), classify, self.spec.preprocess, self._workers, batch_size)

    def _classified(self, chunk: list[ImageSource], decode: Decode, batch_size: int, top: int) -> list[Result]:
        """Decode a chunk and run what could be decoded; failures keep their places."""
        pixels, refused = decode([named.source for named in chunk])
        answers = (
            answer
            for start in range(0, len(pixels), batch_size)
            for answer in self._answers(pixels[start : start + batch_size], top)
        )
        return [
            Failure(named.name, refused[at].kind, str(refused[at]))
            if at in refused
            else Prediction(named.name, *next(answers), self.provider)
            for at, named in enumerate(chunk)
        ]

    def _answers(self, pixels: UInt8Array, top: int) -> Iterator[tuple[str, int, float, tuple[Score, ...]]]:
        """Give label, index, probability and the first `top` of each image, (N, H, W, C)."""
        _, probabilities = self._session.run(pixels)
        if top == 1:
            best = probabilities.argmax(axis=1)[:, None]
        else:
            best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        labels = self.spec.labels
        for indices, values in zip(best.tolist(), np.take_along_axis(probabilities, best, 1).tolist(), strict=True):
            scores = tuple(Score(labels[index], value) for index, value in zip(indices, values, strict=True))
            yield scores[0].label, indices[0], scores[0].score, scores


def _path(image: ImageInput) -> str | None:
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None


def _refuse_misfit(file: OnnxFile, spec: ModelSpec, session: Session) -> None:
    shape, outputs = session.image_shape, session.classes
    if shape != spec.preprocess.shape or outputs != len(spec.labels):
        raise InvalidModelError(
            f"{file.path}: refused: its graph takes {shape} and gives {outputs} classes, its spec says "
            f"{spec.preprocess.shape} and {len(spec.labels)} labels; export it again"
        )
