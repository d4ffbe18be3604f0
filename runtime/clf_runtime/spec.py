"""The spec: what a model needs to know about itself, as JSON inside every exported file.

Parsed once, here, into frozen dataclasses; whatever is wrong or newer than this reader is refused with the
reason. `docs/artifact-format.md` describes the fields for readers in other languages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

from clf_runtime.errors import InvalidModelError

FORMAT = 1
MAX_SIDE = 4096  # pixels; a larger input is a broken number, not a classifier

Color = Literal["L", "RGB"]
ResizeMode = Literal["squash", "crop", "pad"]
Resample = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the graph's input, uint8 (height, width, channels)."""

    color: Color
    height: int
    width: int
    resize: ResizeMode
    crop_ratio: float  # the part of the fitted image that a crop keeps, 0 < ratio <= 1
    resample: Resample
    background: tuple[int, ...]  # 0..255 per channel; under transparency and around `pad`

    @property
    def channels(self) -> int:
        return 1 if self.color == "L" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class Normalize:
    """Mean and standard deviation per channel of pixels in 0..1. For information: the graph applies it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Metrics:
    """What the model reached on images that took no part in its training."""

    split: str
    images: int
    accuracy: float  # 0..1
    loss: float  # negative log-likelihood in nats, of the probabilities that the graph gives
    calibration_error: float  # expected calibration error, 15 bins of equal width (Guo et al. 2017)


@dataclass(frozen=True)
class Provenance:
    """Where the model comes from; enough to find its data again and to train it again."""

    data: str | None  # a data set's name, or the folder as it was typed; None where an import named none
    data_root: str | None
    fingerprint: str | None  # SHA-256 of the held-out images and their classes
    test_split: float  # the share of the images that was kept from training, where there was no test folder
    seed: int
    epochs: float  # a part of one where training ended within it
    state_dict_sha256: str
    time: str  # ISO 8601, UTC
    command: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its weights. Source of the fields: docs/artifact-format.md."""

    architecture: str
    labels: tuple[str, ...]  # in output order
    preprocess: Preprocess
    normalize: Normalize
    temperature: float  # the graph divides the logits by it before the softmax (Guo et al. 2017)
    metrics: Metrics | None
    provenance: Provenance | None
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        """Give the JSON text that `from_json` reads; the same spec gives the same text."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelSpec:
        """Parse and check `text`; `source` is the file to name in a refusal. Raises InvalidModelError."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise InvalidModelError(f"{source}: refused: its spec is not JSON ({error}); export it again") from None
        return _spec(_Fields(content, source, ""), source)


class _Fields:
    """One JSON object, read key by key; every key must be there, be read, and be what it should be."""

    def __init__(self, content: object, source: str, path: str) -> None:
        self._source = source
        self._path = path
        if not isinstance(content, dict):
            raise self.refusal("", f"is {_shown(content)}", "an object")
        self._content = cast("dict[str, object]", content)
        self._unread = set(self._content)

    def refusal(self, key: str, found: str, expected: str) -> InvalidModelError:
        name = ".".join(part for part in (self._path, key) if part) or "its spec"
        return InvalidModelError(f"{self._source}: refused: {name} {found}, expected {expected}; export it again")

    def done(self) -> None:
        if self._unread:
            raise self.refusal(min(self._unread), "is not a field of format 1", "only the known fields")

    def take(self, key: str) -> object:
        if key not in self._content:
            raise self.refusal(key, "is missing", "a value")
        self._unread.discard(key)
        return self._content[key]

    def optional(self, key: str) -> _Fields | None:
        return None if self.take(key) is None else self.fields(key)

    def fields(self, key: str) -> _Fields:
        return _Fields(self.take(key), self._source, ".".join(part for part in (self._path, key) if part))

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str):
            raise self.refusal(key, f"is {_shown(value)}", "a text")
        return value

    def text_or_null(self, key: str) -> str | None:
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            raise self.refusal(key, f"is {_shown(value)}", "a text or null")
        return value

    def choice(self, key: str, among: Iterable[str]) -> str:
        value = self.take(key)
        if value not in tuple(among):
            raise self.refusal(key, f"is {_shown(value)}", " or ".join(among))
        return value

    def whole(self, key: str, low: int, high: int | None = None) -> int:
        value = self.take(key)
        if not _is_whole(value, low, high):
            bounds = f"from {low}" + (f" to {high}" if high is not None else "")
            raise self.refusal(key, f"is {_shown(value)}", f"a whole number {bounds}")
        return cast("int", value)

    def number(self, key: str, low: float, high: float = math.inf, above: bool = False) -> float:
        value = self.take(key)
        if not _is_number(value) or not low <= value <= high or (above and value == low):  # type: ignore[operator]
            bounds = f"{'above' if above else 'from'} {low:g}" + ("" if high == math.inf else f" to {high:g}")
            raise self.refusal(key, f"is {_shown(value)}", f"a number {bounds}")
        return float(cast("float", value))

    def sequence(self, key: str, length: int | None = None) -> list[object]:
        value = self.take(key)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            expected = "a list" if length is None else f"a list of {length}"
            raise self.refusal(key, f"is {_shown(value)}", expected)
        return cast("list[object]", value)


def _spec(fields: _Fields, source: str) -> ModelSpec:
    format_ = fields.whole("format", 1)
    if format_ > FORMAT:
        raise InvalidModelError(
            f"{source}: refused: format is {format_}, expected {FORMAT} at most; update clf-edge here"
        )
    preprocess = _preprocess(fields.fields("preprocess"))
    spec = ModelSpec(
        format=format_,
        architecture=fields.text("architecture"),
        labels=_labels(fields),
        preprocess=preprocess,
        normalize=_normalize(fields.fields("normalize"), preprocess.channels),
        temperature=fields.number("temperature", 0, above=True),
        metrics=_metrics(fields.optional("metrics")),
        provenance=_provenance(fields.optional("provenance")),
    )
    fields.done()
    return spec


def _labels(fields: _Fields) -> tuple[str, ...]:
    labels = fields.sequence("labels")
    if len(labels) < 2:
        raise fields.refusal("labels", f"has {len(labels)}", "2 or more")
    for label in labels:
        if not isinstance(label, str) or not label:
            raise fields.refusal("labels", f"has {_shown(label)}", "texts that are not empty")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise fields.refusal("labels", f"has {_shown(twice)} twice", "each once")
    return tuple(cast("list[str]", labels))


def _preprocess(fields: _Fields) -> Preprocess:
    color = cast("Color", fields.choice("color", get_args(Color)))
    background = fields.sequence("background", 1 if color == "L" else 3)
    if not all(_is_whole(value, 0, 255) for value in background):
        raise fields.refusal("background", f"is {_shown(background)}", "whole numbers from 0 to 255")
    preprocess = Preprocess(
        color=color,
        height=fields.whole("height", 1, MAX_SIDE),
        width=fields.whole("width", 1, MAX_SIDE),
        resize=cast("ResizeMode", fields.choice("resize", get_args(ResizeMode))),
        crop_ratio=fields.number("crop_ratio", 0, 1, above=True),
        resample=cast("Resample", fields.choice("resample", get_args(Resample))),
        background=tuple(cast("list[int]", background)),
    )
    fields.done()
    return preprocess


def _normalize(fields: _Fields, channels: int) -> Normalize:
    values = {}
    for key in ("mean", "std"):
        numbers = fields.sequence(key, channels)
        if not all(_is_number(value) and (key == "mean" or value > 0) for value in numbers):  # type: ignore[operator]
            raise fields.refusal(key, f"is {_shown(numbers)}", "numbers, and for std above 0")
        values[key] = tuple(float(value) for value in cast("list[float]", numbers))
    fields.done()
    return Normalize(**values)


def _metrics(fields: _Fields | None) -> Metrics | None:
    if fields is None:
        return None
    metrics = Metrics(
        split=fields.text("split"),
        images=fields.whole("images", 1),
        accuracy=fields.number("accuracy", 0, 1),
        loss=fields.number("loss", 0),
        calibration_error=fields.number("calibration_error", 0, 1),
    )
    fields.done()
    return metrics


def _provenance(fields: _Fields | None) -> Provenance | None:
    if fields is None:
        return None
    versions = fields.take("versions")
    if not isinstance(versions, dict) or not all(isinstance(value, str) for value in versions.values()):
        raise fields.refusal("versions", f"is {_shown(versions)}", "an object of texts")
    provenance = Provenance(
        data=fields.text_or_null("data"),
        data_root=fields.text_or_null("data_root"),
        fingerprint=fields.text_or_null("fingerprint"),
        test_split=fields.number("test_split", 0, 1),
        seed=fields.whole("seed", 0),
        epochs=_whole_if_whole(fields.number("epochs", 0)),
        state_dict_sha256=fields.text("state_dict_sha256"),
        time=fields.text("time"),
        command=fields.text("command"),
        versions=versions,
    )
    fields.done()
    return provenance


def _whole_if_whole(number: float) -> float:
    # So that 30 is written as 30 again.
    return int(number) if number.is_integer() else number


def _is_whole(value: object, low: int, high: int | None) -> bool:
    # bool is an int in Python, not in JSON
    return type(value) is int and low <= value and (high is None or value <= high)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(cast("float", value))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
