"""The spec: the description of a model, stored as JSON inside every exported file.

It is parsed once, here, into frozen dataclasses. A field that is missing, unknown or invalid is an error that names the
field. `docs/artifact-format.md` describes the fields for readers in other languages.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

from clf_runtime.errors import InvalidModelError

FORMAT = 1
MAX_SIDE = 4096  # pixels; a larger input is a wrong number, not a classifier
_MAX_INTEGER = 2**63 - 1
_MAX_FLOAT = sys.float_info.max

_OPTIONAL_OF_PROVENANCE = ("columns", "splits")

Color = Literal["L", "RGB"]
ResizeMode = Literal["squash", "crop", "pad"]
Resample = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input of the graph, uint8 (height, width, channels).

    Attributes:
        color: `"L"` (grayscale) or `"RGB"`.
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        resize: What happens to an image of another shape: `"squash"` ignores its aspect ratio, `"crop"` takes its
            center, `"pad"` adds `background` around it.
        crop_ratio: With `"crop"`, the side of the crop divided by that of the resized image, 0 < ratio <= 1.
        resample: The filter: `"bilinear"` or `"bicubic"`, both antialiased.
        background: The color under transparency and around `"pad"`: one value per channel, 0..255.
    """

    color: Color
    height: int
    width: int
    resize: ResizeMode
    crop_ratio: float
    resample: Resample
    background: tuple[int, ...]

    @property
    def channels(self) -> int:
        """1 for grayscale, 3 for RGB."""
        return 1 if self.color == "L" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the input."""
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class Normalize:
    """The normalization inside the graph, for information: pixels in 0..1 minus `mean`, divided by `std`.

    Attributes:
        mean: One value per channel.
        std: One value per channel, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Metrics:
    """What the model reaches on images that took no part in its training.

    Attributes:
        split: Where these images come from.
        images: Their number.
        accuracy: The fraction that is classified correctly, 0..1.
        loss: The mean negative log-likelihood of the graph's probabilities, in nats.
        calibration_error: The expected calibration error with 15 bins of equal width (Guo et al. 2017), 0..1.
    """

    split: str
    images: int
    accuracy: float
    loss: float
    calibration_error: float


@dataclass(frozen=True)
class Provenance:
    """Where the model comes from: enough to find its data again and to repeat its training.

    Attributes:
        data: The name of a data set, or the folder as it was typed; None if an import named none.
        data_root: The folder that data sets are downloaded to.
        fingerprint: SHA-256 of the test split: of its images and their classes.
        test_split: The fraction of the images that was split off for testing, if there was no test folder.
        seed: The seed of the training.
        epochs: The number of epochs; fractional if training ended within one.
        state_dict_sha256: SHA-256 of the weights.
        time: When training ended: ISO 8601, UTC.
        command: The command line.
        versions: Package name → version.
        columns: What was chosen of `clf_runtime.labeled.Columns`; None if nothing was.
        splits: Split → the folder or the value that the data itself has for it; None if the seed chose all splits.
    """

    data: str | None
    data_root: str | None
    fingerprint: str | None
    test_split: float
    seed: int
    epochs: float
    state_dict_sha256: str
    time: str
    command: str
    versions: Mapping[str, str]
    columns: Mapping[str, str] | None = None
    splits: Mapping[str, str] | None = None


@dataclass(frozen=True)
class ModelSpec:
    """The description of a model: everything except its weights.

    `docs/artifact-format.md` is the reference for the JSON.

    Attributes:
        architecture: The name of the network.
        labels: The class names, in the order of the graph's outputs.
        preprocess: How an image becomes the input of the graph.
        normalize: The normalization inside the graph.
        temperature: The graph divides the logits by it before the softmax (Guo et al. 2017).
        metrics: What the model reached on its test images; None if they were never measured.
        provenance: Where the model comes from; None if unknown.
        serial: The place of the model in the sequence of its versions: a device that has had a higher one refuses it;
            None if it has none.
        format: The version of the spec's format.
    """

    architecture: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    normalize: Normalize
    temperature: float
    metrics: Metrics | None
    provenance: Provenance | None
    serial: int | None = None
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads. Equal specs return equal texts."""
        content = asdict(self)
        for key in _OPTIONAL_OF_PROVENANCE:
            # Readers that are older than the field reject it, so it is only written if it says something.
            if self.provenance is not None and getattr(self.provenance, key) is None:
                del content["provenance"][key]
        if self.serial is None:
            del content["serial"]
        return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelSpec:
        """Parse and validate a spec.

        Args:
            text: The JSON text.
            source: The name of the file, for error messages.

        Returns:
            The spec.

        Raises:
            InvalidModelError: The text is not JSON, a field is missing, unknown or invalid, or the format is newer than
                this version of clf-edge.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise InvalidModelError(f"{source}: its spec is not valid JSON ({error}); export it again") from None
        return _parse_spec(_Fields(content, source, ""), source)


def parse_json(text: str) -> Any:
    """Parse JSON that may come from anyone.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, or has characters that UTF-8 cannot encode.
    """
    try:
        content = json.loads(text)
        if "\\u" in text:  # which may be half of a surrogate pair, such as "\ud800"
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return content


class _Fields:
    """A JSON object that is read key by key. Every key must be present, known and valid."""

    def __init__(self, content: object, source: str, path: str) -> None:
        self._source = source
        self._path = path
        if not isinstance(content, dict):
            raise self.error("", f"is {_abbreviate(content)}", "an object")
        self._content = cast("dict[str, object]", content)
        self._unread = set(self._content)

    def error(self, key: str, found: str, expected: str) -> InvalidModelError:
        name = ".".join(part for part in (self._path, key) if part) or "its spec"
        return InvalidModelError(f"{self._source}: {name} {found}, expected {expected}; export it again")

    def check_all_read(self) -> None:
        if self._unread:
            key = min(self._unread)
            raise self.error(
                key if key.isprintable() else _abbreviate(key), "is not a field of format 1", "only the known fields"
            )

    def take(self, key: str) -> object:
        if key not in self._content:
            raise self.error(key, "is missing", "a value")
        self._unread.discard(key)
        return self._content[key]

    def nested_or_null(self, key: str) -> _Fields | None:
        return None if self.take(key) is None else self.nested(key)

    def nested(self, key: str) -> _Fields:
        return _Fields(self.take(key), self._source, ".".join(part for part in (self._path, key) if part))

    def string(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str):
            raise self.error(key, f"is {_abbreviate(value)}", "a string")
        return value

    def string_or_null(self, key: str) -> str | None:
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"is {_abbreviate(value)}", "a string or null")
        return value

    def has(self, key: str) -> bool:
        return key in self._content

    def texts(self, key: str) -> dict[str, str]:
        value = self.take(key)
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise self.error(key, f"is {_abbreviate(value)}", "an object of strings")
        return value

    def choice(self, key: str, choices: Iterable[str]) -> str:
        value = self.take(key)
        if value not in tuple(choices):
            raise self.error(key, f"is {_abbreviate(value)}", " or ".join(choices))
        return value

    def integer(self, key: str, low: int, high: int = _MAX_INTEGER) -> int:
        value = self.take(key)
        if not _is_integer(value, low, high):
            raise self.error(key, f"is {_abbreviate(value)}", f"an integer from {low} to {high}")
        return cast("int", value)

    def number(self, key: str, low: float, high: float = math.inf, above: bool = False) -> float:
        value = self.take(key)
        if not _is_number(value) or not low <= value <= high or (above and value == low):  # type: ignore[operator]
            bounds = f"{'above' if above else 'from'} {low:g}" + ("" if high == math.inf else f" to {high:g}")
            raise self.error(key, f"is {_abbreviate(value)}", f"a number {bounds}")
        return float(cast("float", value))

    def array(self, key: str, length: int | None = None) -> list[object]:
        value = self.take(key)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            expected = "a list" if length is None else f"a list of {length}"
            raise self.error(key, f"is {_abbreviate(value)}", expected)
        return cast("list[object]", value)


def _parse_spec(fields: _Fields, source: str) -> ModelSpec:
    format_ = fields.integer("format", 1)
    if format_ > FORMAT:
        raise InvalidModelError(
            f"{source}: spec format is {_abbreviate(format_)}, expected at most {FORMAT}; "
            "update clf-edge on this machine"
        )
    preprocess = _parse_preprocess(fields.nested("preprocess"))
    spec = ModelSpec(
        format=format_,
        architecture=fields.string("architecture"),
        labels=_parse_labels(fields),
        preprocess=preprocess,
        normalize=_parse_normalize(fields.nested("normalize"), preprocess.channels),
        temperature=fields.number("temperature", 0, above=True),
        metrics=_parse_metrics(fields.nested_or_null("metrics")),
        provenance=_parse_provenance(fields.nested_or_null("provenance")),
        serial=fields.integer("serial", 0) if fields.has("serial") else None,
    )
    fields.check_all_read()
    return spec


def _parse_labels(fields: _Fields) -> tuple[str, ...]:
    labels = fields.array("labels")
    if len(labels) < 2:
        raise fields.error("labels", f"has {len(labels)}", "at least 2")
    for label in labels:
        if not isinstance(label, str) or not label:
            raise fields.error("labels", f"has {_abbreviate(label)}", "non-empty strings")
    if len(set(labels)) < len(labels):
        seen: set[object] = set()
        duplicate = next(label for label in labels if label in seen or seen.add(label))  # type: ignore[func-returns-value]
        raise fields.error("labels", f"has {_abbreviate(duplicate)} twice", "distinct labels")
    return tuple(cast("list[str]", labels))


def _parse_preprocess(fields: _Fields) -> Preprocess:
    color = cast("Color", fields.choice("color", get_args(Color)))
    background = fields.array("background", 1 if color == "L" else 3)
    if not all(_is_integer(value, 0, 255) for value in background):
        raise fields.error("background", f"is {_abbreviate(background)}", "integers from 0 to 255")
    preprocess = Preprocess(
        color=color,
        height=fields.integer("height", 1, MAX_SIDE),
        width=fields.integer("width", 1, MAX_SIDE),
        resize=cast("ResizeMode", fields.choice("resize", get_args(ResizeMode))),
        crop_ratio=fields.number("crop_ratio", 0, 1, above=True),
        resample=cast("Resample", fields.choice("resample", get_args(Resample))),
        background=tuple(cast("list[int]", background)),
    )
    fields.check_all_read()
    return preprocess


def _parse_normalize(fields: _Fields, channels: int) -> Normalize:
    values = {}
    for key in ("mean", "std"):
        numbers = fields.array(key, channels)
        if not all(_is_number(value) and (key == "mean" or value > 0) for value in numbers):  # type: ignore[operator]
            raise fields.error(key, f"is {_abbreviate(numbers)}", "numbers, above 0 in std")
        values[key] = tuple(float(value) for value in cast("list[float]", numbers))
    fields.check_all_read()
    return Normalize(**values)


def _parse_metrics(fields: _Fields | None) -> Metrics | None:
    if fields is None:
        return None
    metrics = Metrics(
        split=fields.string("split"),
        images=fields.integer("images", 1),
        accuracy=fields.number("accuracy", 0, 1),
        loss=fields.number("loss", 0),
        calibration_error=fields.number("calibration_error", 0, 1),
    )
    fields.check_all_read()
    return metrics


def _parse_provenance(fields: _Fields | None) -> Provenance | None:
    if fields is None:
        return None
    provenance = Provenance(
        data=fields.string_or_null("data"),
        data_root=fields.string_or_null("data_root"),
        fingerprint=fields.string_or_null("fingerprint"),
        test_split=fields.number("test_split", 0, 1),
        seed=fields.integer("seed", 0),
        epochs=_integer_if_integral(fields.number("epochs", 0)),
        state_dict_sha256=fields.string("state_dict_sha256"),
        time=fields.string("time"),
        command=fields.string("command"),
        versions=fields.texts("versions"),
        **{key: fields.texts(key) for key in _OPTIONAL_OF_PROVENANCE if fields.has(key)},
    )
    fields.check_all_read()
    return provenance


def _integer_if_integral(number: float) -> float:
    # 30 is written as 30 again, not as 30.0.
    return int(number) if number.is_integer() else number


def _is_integer(value: object, low: int, high: int) -> bool:
    # bool is a subclass of int in Python, but not a number in JSON.
    return type(value) is int and low <= value <= high


def _is_number(value: object) -> bool:
    # Not math.isfinite: it fails for an integer of 400 digits.
    return type(value) in (int, float) and -_MAX_FLOAT <= cast("float", value) <= _MAX_FLOAT


def _abbreviate(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "nested deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
