"""What an evaluation found: for each model, and between models."""

from __future__ import annotations

from dataclasses import dataclass

from clf_runtime.diagnostics.parity import read_parity
from clf_runtime.evaluation.labels import LabelMatch
from clf_runtime.evaluation.latency import Latency
from clf_runtime.evaluation.metrics import EvalMetrics, Int64Array, ScoredImages
from clf_runtime.evaluation.selection import EvalImages
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.predictions import Failure


@dataclass(frozen=True)
class ModelResult:
    """What one model reached.

    Attributes:
        file: The model file.
        provider: onnxruntime's name of the execution provider that ran it.
        match: The labels of the data and of the model.
        positions: Which of the images (N,) were scored: those that could be read and whose label the model has.
        scored: What it returned for them.
        metrics: What that amounts to.
        failures: The images that could not be read.
        throughput: Images per second, all cores, from file to probabilities.
        latency: Of one image at a time.
    """

    file: OnnxFile
    provider: str
    match: LabelMatch
    positions: Int64Array
    scored: ScoredImages
    metrics: EvalMetrics
    failures: tuple[Failure, ...]
    throughput: float
    latency: Latency

    @property
    def name(self) -> str:
        """The path of the model, as given."""
        return str(self.file.path)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the model."""
        return self.file.spec.labels

    @property
    def precision(self) -> str:
        """fp32, fp16 or int8, as clf-export recorded it; otherwise unknown."""
        parity = read_parity(self.file)
        return "unknown" if parity is None else str(parity["precision"])


@dataclass(frozen=True)
class Change:
    """An image to which two models give different labels."""

    path: str
    label: str  # as the data spells it
    first: str
    second: str
    is_first_correct: bool
    is_second_correct: bool


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images: those that both scored.

    Attributes:
        first: The path of the first model.
        second: The path of the second model.
        images: How many images both scored.
        only_first: How many of them only the first classifies correctly.
        only_second: How many of them only the second classifies correctly.
        p_value: Of the exact McNemar test, two-sided.
        changes: The images to which they give different labels.
    """

    first: str
    second: str
    images: int
    only_first: int
    only_second: int
    p_value: float
    changes: tuple[Change, ...]

    @property
    def difference(self) -> float:
        """The accuracy of the second model minus that of the first, on these images, -1..1."""
        return (self.only_second - self.only_first) / self.images if self.images else 0.0


@dataclass(frozen=True)
class Evaluation:
    """The results of all models; each further one is compared with the first.

    Attributes:
        images: The images.
        results: The results of each model.
        comparisons: Each further model against the first.
        warnings: What a person should know, one line each.
    """

    images: EvalImages
    results: tuple[ModelResult, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each model: its file name, or its path where two files have the same name."""
        names = [result.file.path.name for result in self.results]
        return tuple(names) if len(set(names)) == len(names) else tuple(result.name for result in self.results)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The images that could not be read, each once."""
        return tuple({failure.path: failure for result in self.results for failure in result.failures}.values())

    @property
    def is_complete(self) -> bool:
        """Whether every model scored every image."""
        return all(len(result.positions) == len(self.images) for result in self.results)
