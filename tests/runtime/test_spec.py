"""The spec: every field is read, and a missing, unknown or invalid one is an error that names it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import ModelSpec, _abbreviate

COMPLETE: dict[str, Any] = {
    "format": 1,
    "architecture": "small-resnet",
    "labels": ["cat", "dog"],
    "preprocess": {
        "color": "RGB",
        "height": 32,
        "width": 48,
        "resize": "crop",
        "crop_ratio": 0.875,
        "resample": "bicubic",
        "background": [255, 0, 7],
    },
    "normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
    "temperature": 1.25,
    "metrics": {"split": "test", "images": 10, "accuracy": 0.9, "loss": 0.3, "calibration_error": 0.02},
    "provenance": {
        "data": "pets",
        "data_root": None,
        "fingerprint": "00",
        "test_split": 0.2,
        "seed": 0,
        "epochs": 3,
        "state_dict_sha256": "11",
        "time": "2026-01-01T00:00:00+00:00",
        "command": "clf-train",
        "versions": {"torch": "2.15.0"},
    },
}


def changed(path: str, value: object) -> str:
    """Return the JSON of a complete spec with another value at `path`; without the field for `...`."""
    content = copy.deepcopy(COMPLETE)
    *parents, last = path.split(".")
    target = content
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return json.dumps(content)


def test_a_spec_is_the_same_after_writing_and_reading_it():
    spec = ModelSpec.from_json(json.dumps(COMPLETE), "model.json")
    assert json.loads(spec.to_json()) == COMPLETE
    assert ModelSpec.from_json(spec.to_json(), "again") == spec
    assert spec.preprocess.shape == (32, 48, 3)


def test_a_serial_number_is_written_only_if_there_is_one():
    spec = ModelSpec.from_json(changed("serial", 7), "model.json")
    assert spec.serial == 7
    assert ModelSpec.from_json(spec.to_json(), "model.json") == spec
    assert "serial" not in json.loads(ModelSpec.from_json(json.dumps(COMPLETE), "model.json").to_json())


@pytest.mark.parametrize(("field", "value"), [("columns", {"label": "species"}), ("splits", {"test": "valid"})])
def test_what_older_readers_do_not_know_is_written_only_if_it_is_set(field, value):
    spec = ModelSpec.from_json(changed(f"provenance.{field}", value), "model.json")
    assert getattr(spec.provenance, field) == value
    assert ModelSpec.from_json(spec.to_json(), "model.json") == spec
    without = ModelSpec.from_json(json.dumps(COMPLETE), "model.json")
    assert field not in json.loads(without.to_json())["provenance"]


@pytest.mark.parametrize("path", ["metrics", "provenance"])
def test_metrics_and_provenance_may_be_null(path):
    assert getattr(ModelSpec.from_json(changed(path, None), "model.json"), path) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, "spec format is 2, expected at most 1; update clf-edge on this machine"),
        ("format", "1", "format is "),
        ("architecture", 7, "architecture is 7, expected a string"),
        ("labels", ["cat"], "labels has 1, expected at least 2"),
        ("labels", ["cat", "cat"], 'labels has "cat" twice'),
        ("labels", ["cat", ""], "expected non-empty strings"),
        ("labels", "cat,dog", "expected a list"),
        ("preprocess", [], "preprocess is [], expected an object"),
        ("preprocess.resize", "stretch", 'preprocess.resize is "stretch", expected squash or crop or pad'),
        ("preprocess.color", "CMYK", "expected L or RGB"),
        ("preprocess.height", 0, "preprocess.height is 0, expected an integer from 1 to 4096"),
        ("preprocess.width", 4097, "preprocess.width is 4097"),
        ("preprocess.height", True, "preprocess.height is true"),
        ("preprocess.height", 28.0, "preprocess.height is 28.0"),
        ("preprocess.crop_ratio", 0, "expected a number above 0 to 1"),
        ("preprocess.crop_ratio", 1.5, "crop_ratio is 1.5"),
        ("preprocess.resample", None, "resample is null"),
        ("preprocess.background", [0], "expected a list of 3"),
        ("preprocess.background", [0, 0, 256], "expected integers from 0 to 255"),
        ("preprocess.background", ..., "preprocess.background is missing"),
        ("preprocess.extra", 1, "preprocess.extra is not a field of format 1"),
        ("extra", 1, "extra is not a field of format 1"),
        ("normalize.mean", [0.5], "normalize.mean is [0.5], expected a list of 3"),
        ("normalize.std", [0.2, 0.2, 0], "above 0 in std"),
        ("normalize.mean", [0.2, 0.2, "a"], "expected numbers"),
        ("temperature", 0, "temperature is 0, expected a number above 0"),
        ("temperature", float("nan"), "temperature is NaN"),
        ("temperature", "1", "temperature is "),
        ("metrics.accuracy", 1.1, "metrics.accuracy is 1.1, expected a number from 0 to 1"),
        ("metrics.images", -1, "metrics.images is -1, expected an integer from 1"),
        ("metrics.more", 1, "metrics.more is not a field"),
        ("provenance.versions", {"torch": 2}, "expected an object of strings"),
        ("provenance.data_root", 5, "expected a string or null"),
        ("provenance.seed", ..., "provenance.seed is missing"),
        ("provenance.who", "me", "provenance.who is not a field"),
        ("labels", ["a" * 80, "a" * 80], "..."),
    ],
)
def test_an_invalid_field_is_an_error_with_its_name_what_was_found_and_what_was_expected(path, value, message):
    with pytest.raises(InvalidModelError, match=r"^model\.json: ") as error:
        ModelSpec.from_json(changed(path, value), "model.json")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_is_nested_too_deeply_to_be_shown_has_a_message_all_the_same():
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    assert _abbreviate(value) == "nested deeply"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"spec"'])
def test_a_text_that_is_not_a_json_object_is_an_error(text):
    with pytest.raises(InvalidModelError, match=r"^model\.json: its spec is "):
        ModelSpec.from_json(text, "model.json")
