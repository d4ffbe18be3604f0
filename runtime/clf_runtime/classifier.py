"""The `Classifier`: an exported model that classifies images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clf_runtime import onnx_file
from clf_runtime.decoding import Decoder
from clf_runtime.errors import ImageError, InvalidModelError, ModelChangedError
from clf_runtime.image_files import MAX_IMAGE_BYTES
from clf_runtime.machine import usable_cores
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.pipeline import run_pipeline
from clf_runtime.predictions import Failure, Prediction, Result, Score
from clf_runtime.preprocess import ImageInput, UInt8Array
from clf_runtime.session import Float32Array, Session
from clf_runtime.sources import ImageSource
from clf_runtime.spec import ModelSpec

# From 8 images per batch on, MobileNetV3-small and ResNet-18 do not get faster.
BATCH_SIZE = 8
_ATTEMPTS = 3  # to open a model that is being replaced


class Ranking(NamedTuple):
    """The highest scores of one image."""

    class_index: int  # of the highest score
    top: tuple[Score, ...]  # in descending order


class Classifier:
    """An exported model, loaded on this machine.

    Create one with `load`. All methods may be called from several threads at once. The memory of the model is freed by
    `close`, at the end of a `with` block, or with the object.

    Attributes:
        file: The model file: its path, size, digest and metadata.
        spec: The description of the model: labels, preprocessing, metrics, provenance.
        decoder: From an image to the pixels that `run` takes.

    Examples:
        >>> classifier = Classifier.load("model.onnx", device="cpu")  # doctest: +SKIP
        >>> classifier.predict("img.jpg").label  # doctest: +SKIP
        '7'
    """

    file: OnnxFile
    spec: ModelSpec
    decoder: Decoder

    def __init__(self, file: OnnxFile, session: Session, workers: int, max_image_bytes: int = MAX_IMAGE_BYTES) -> None:
        """Store an open model. Use `load` to open one.

        Args:
            file: The model file.
            session: The session that runs its graph.
            workers: How many images `predict_files` has in progress at once.
            max_image_bytes: The memory that decoding and resizing one image may take.
        """
        self.file = file
        self.spec = file.spec
        self.decoder = Decoder(file.spec.preprocess, max_image_bytes)
        self._provider = session.provider
        self._warning = session.warning
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
        max_image_bytes: int = MAX_IMAGE_BYTES,
        require_signature: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    ) -> Classifier:
        """Load an exported ONNX file, after verifying its digest and its spec.

        Nothing is printed and no global state changes; what the caller may want to know is in `warning`.

        Args:
            model: Path of a file that clf-export wrote.
            device: `"auto"` selects CUDA if it works here and the CPU otherwise. `"cpu"`, `"cuda"`, `"cuda:N"` or the
                short name of another execution provider of onnxruntime (such as `"openvino"` or `"tensorrt"`) runs
                there or raises an error; there is no silent fallback.
            threads: How many cores to use. By default, all that the CPU affinity and the cgroup quota allow.
            workers: How many images `predict_files` has in progress at once. With 1, one image uses all cores: the
                lowest latency. With as many as `threads`, each core works on images of its own: the highest throughput.
            max_image_bytes: The memory that decoding and resizing one image may take, estimated from its header; an
                image that needs more is an ImageError of the kind `"too-large"`.
            require_signature: Public keys (PEM files), one of which must have signed the model. Verifying needs the
                extra `[verify]`. A policy of the machine applies in any case.

        Returns:
            The loaded model.

        Raises:
            InvalidModelError: The file is missing, damaged, from another tool, too new for this onnxruntime, or not
                signed as required.
            MachineError: The device does not work on this machine, or its policy cannot be read.
            UsageError: The device is unknown, or a public key is not one.
            OSError: The file cannot be read.

        Examples:
            >>> fast = Classifier.load("model.onnx", threads=4, workers=4)  # doctest: +SKIP
            >>> on_gpu = Classifier.load("model.onnx", device="cuda:0")  # doctest: +SKIP
        """
        threads = max(1, usable_cores() if threads is None else threads)
        if isinstance(require_signature, (str, os.PathLike)):
            require_signature = (require_signature,)
        keys = tuple(map(Path, require_signature))
        opened = _open_unchanged(lambda: onnx_file.read_trusted(Path(model), keys), device, max(1, threads // workers))
        _check_graph_matches_spec(*opened)
        return cls(*opened, workers, max_image_bytes)

    @property
    def sha256(self) -> str:
        """The digest of the model file, hexadecimal."""
        return self.file.sha256

    @property
    def provider(self) -> str:
        """onnxruntime's name of the execution provider that runs the model, such as `"CPUExecutionProvider"`."""
        return self._provider

    @property
    def warning(self) -> str:
        """Why `device="auto"` selected the CPU although onnxruntime includes CUDA, in one line; otherwise empty."""
        return self._warning

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory of the model when predictions in progress in other threads have finished.

        Any later prediction raises ValueError, as reading from a closed file does. Closing twice is allowed.
        """
        self._open_session = None

    @property
    def _session(self) -> Session:
        if self._open_session is None:
            raise ValueError("this Classifier is closed")
        return self._open_session

    def predict(self, image: ImageInput, top: int = 1) -> Prediction:
        """Classify one image.

        Args:
            image: A path, the bytes of an image file, an open binary file, a PIL image, or a uint8 array of shape
                (H, W) or (H, W, C). An array or PIL image of three channels is RGB, an array of four RGBA.
            top: How many labels `Prediction.top` contains, at most one per class.

        Returns:
            The prediction.

        Raises:
            ImageError: The image cannot be read.
            MachineError: The device fails.
            ValueError: The classifier is closed.

        Examples:
            >>> classifier.predict("img.jpg", top=3).top  # doctest: +SKIP
            (Score(label='7', score=0.99..., index=7), Score(label='1', score=0.00..., index=1), ...)
        """
        pixels = self.decoder.decode(image)
        return self.prediction(_path(image), self._infer(pixels[None], top)[0])

    def predict_batch(
        self, images: Iterable[ImageInput], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> list[Result]:
        """Classify several images of any kind that `predict` takes, mixed.

        Args:
            images: The images.
            batch_size: How many images the model gets at once.
            top: How many labels `Prediction.top` contains, at most one per class.

        Returns:
            One result per image, in order; for an image that cannot be read, a `Failure`.

        Raises:
            MachineError: The device fails.
            ValueError: The classifier is closed.

        Examples:
            >>> results = classifier.predict_batch(["img.jpg", Path("img.jpg").read_bytes()])  # doctest: +SKIP
            >>> [result.label for result in results]  # doctest: +SKIP
            ['7', '7']
        """
        sources = (ImageSource(_path(image) or "", image) for image in images)
        pairs = self.predict_sources(sources, batch_size=batch_size, top=top)
        return [
            result if isinstance(source.content, (str, os.PathLike)) else replace(result, path=None)
            for source, result in pairs
        ]

    def predict_files(
        self, paths: Iterable[str | bytes | os.PathLike[str]], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> Iterator[Result]:
        """Classify files lazily, in order, with bounded memory.

        Args:
            paths: The files; may be infinite. Only a few chunks of `batch_size` are read ahead of the results.
            batch_size: How many images the model gets at once.
            top: How many labels `Prediction.top` contains, at most one per class.

        Yields:
            One result per file; for a file that cannot be read, a `Failure`.

        Raises:
            MachineError: The device fails.
            ValueError: The classifier is closed.

        Examples:
            >>> for result in classifier.predict_files(["img.jpg", "gone.jpg"]):  # doctest: +SKIP
            ...     print(result.path, result.kind if isinstance(result, Failure) else result.label)
            img.jpg 7
            gone.jpg not-found
        """
        names = map(os.fsdecode, paths)
        pairs = self.predict_sources((ImageSource(name, name) for name in names), batch_size=batch_size, top=top)
        return (result for _, result in pairs)

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Run the graph on preprocessed pixels.

        Args:
            pixels: uint8 (N, height, width, channels), in the shape of `spec.preprocess.shape`.

        Returns:
            Logits and probabilities, each float32 (N, classes).

        Raises:
            MachineError: The device fails, for example because the batch is too large for its memory.
            ValueError: The classifier is closed.

        Examples:
            >>> pixels = np.zeros((1, *classifier.spec.preprocess.shape), np.uint8)  # doctest: +SKIP
            >>> logits, probabilities = classifier.run(pixels)  # doctest: +SKIP
        """
        return self._session.run(pixels)

    def predict_sources(
        self, sources: Iterable[ImageSource], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> Iterator[tuple[ImageSource, Result]]:
        """Yield each source that `clf_runtime.sources` found with its result, lazily and in order."""
        infer = partial(self._infer, top=top)
        outputs = run_pipeline(iter(sources), infer, self.decoder, self._workers, batch_size)
        for source, output in outputs:
            if isinstance(output, ImageError):
                yield source, Failure(source.name, output.kind, str(output))
            else:
                yield source, self.prediction(source.name, output)

    def prediction(self, path: str | None, ranking: Ranking) -> Prediction:
        """Return the prediction for an image with this ranking."""
        best = ranking.top[0]
        return Prediction(path, best.label, ranking.class_index, best.score, ranking.top, self._provider)

    def rank(self, probabilities: Float32Array, top: int) -> list[Ranking]:
        """Return the ranking of each row of probabilities, (n, classes)."""
        if top == 1:
            best = probabilities.argmax(axis=1)[:, None]
        else:
            best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        values = np.take_along_axis(probabilities, best, 1)
        labels = self.spec.labels
        return [
            Ranking(row[0], tuple(Score(labels[index], score, index) for index, score in zip(row, scores, strict=True)))
            for row, scores in zip(best.tolist(), values.tolist(), strict=True)
        ]

    def _infer(self, pixels: UInt8Array, top: int) -> list[Ranking]:
        """Return the ranking of each image in pixels, (n, height, width, channels)."""
        return self.rank(self._session.run(pixels)[1], top)


def _path(image: ImageInput) -> str | None:
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None


def load_own(path: Path) -> Classifier:
    """Load a file that this process has written, on the CPU: no signature is required yet. Raises as `load` does."""
    opened = _open_unchanged(lambda: onnx_file.read(path), "cpu", usable_cores())
    _check_graph_matches_spec(*opened)
    return Classifier(*opened, workers=1)


def _open_unchanged(read: Callable[[], OnnxFile], device: str, threads: int) -> tuple[OnnxFile, Session]:
    """Open a model, again if it is replaced between its digest and its opening, as by an update of the device."""
    attempts = _ATTEMPTS
    while True:
        try:
            file = read()
            return file, Session(file, device, threads)
        except ModelChangedError:
            attempts -= 1
            if not attempts:
                raise


def _check_graph_matches_spec(file: OnnxFile, session: Session) -> None:
    shape, labels = file.spec.preprocess.shape, len(file.spec.labels)
    if session.image_shape != shape or session.classes != labels:
        raise InvalidModelError(
            f"{file.path}: its graph and its spec disagree (graph: input {session.image_shape}, {session.classes} "
            f"classes; spec: input {shape}, {labels} labels); export it again"
        )
