"""The spec says what it means, and refuses what it does not understand."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import ModelSpec

COMPLETE: dict[str, Any] = {
    "format": 1,
    "architecture": "small-resnet",
    "labels": ["cat", "dog"],
    "preprocess": {
        "color": "RGB",
        "height": 32,
        "width": 48,
        "fit": "crop",
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
        "held_out": 0.2,
        "seed": 0,
        "epochs": 3,
        "state_dict_sha256": "11",
        "time": "2026-01-01T00:00:00+00:00",
        "command": "clf-train",
        "versions": {"torch": "2.15.0"},
    },
}


def changed(path: str, value: object) -> str:
    content = copy.deepcopy(COMPLETE)
    *parents, last = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


def test_a_spec_survives_being_written_and_read():
    spec = ModelSpec.from_json(json.dumps(COMPLETE), "model.json")
    assert json.loads(spec.to_json()) == COMPLETE
    assert ModelSpec.from_json(spec.to_json(), "again") == spec
    assert spec.preprocess.shape == (32, 48, 3)


@pytest.mark.parametrize("path", ["metrics", "provenance"])
def test_what_is_not_known_may_be_null(path):
    assert getattr(ModelSpec.from_json(changed(path, None), "model.json"), path) is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 2, "format is 2, expected 1 at most; update clf-edge here"),
        ("format", "1", "format is "),
        ("architecture", 7, "architecture is 7, expected a text"),
        ("labels", ["cat"], "labels has 1, expected 2 or more"),
        ("labels", ["cat", "cat"], 'labels has "cat" twice'),
        ("labels", ["cat", ""], "texts that are not empty"),
        ("labels", "cat,dog", "expected a list"),
        ("preprocess", [], "preprocess is [], expected an object"),
        ("preprocess.resize", "stretch", 'preprocess.resize is "stretch", expected squash or crop or pad'),
        ("preprocess.color", "CMYK", "expected L or RGB"),
        ("preprocess.height", 0, "preprocess.height is 0, expected a whole number from 1 to 4096"),
        ("preprocess.width", 4097, "preprocess.width is 4097"),
        ("preprocess.height", True, "preprocess.height is true"),
        ("preprocess.height", 28.0, "preprocess.height is 28.0"),
        ("preprocess.crop_ratio", 0, "expected a number above 0 to 1"),
        ("preprocess.crop_ratio", 1.5, "crop_ratio is 1.5"),
        ("preprocess.resample", None, "resample is null"),
        ("preprocess.background", [0], "expected a list of 3"),
        ("preprocess.background", [0, 0, 256], "expected whole numbers from 0 to 255"),
        ("preprocess.background", ..., "preprocess.background is missing"),
        ("preprocess.extra", 1, "preprocess.extra is not a field of format 1"),
        ("extra", 1, "extra is not a field of format 1"),
        ("normalize.mean", [0.5], "normalize.mean is [0.5], expected a list of 3"),
        ("normalize.std", [0.2, 0.2, 0], "for std above 0"),
        ("normalize.mean", [0.2, 0.2, "a"], "expected numbers"),
        ("temperature", 0, "temperature is 0, expected a number above 0"),
        ("temperature", float("nan"), "temperature is NaN"),
        ("temperature", "1", "temperature is "),
        ("metrics.accuracy", 1.1, "metrics.accuracy is 1.1, expected a number from 0 to 1"),
        ("metrics.images", -1, "metrics.images is -1, expected a whole number from 1"),
        ("metrics.more", 1, "metrics.more is not a field"),
        ("provenance.versions", {"torch": 2}, "expected an object of texts"),
        ("provenance.data_root", 5, "expected a text or null"),
        ("provenance.seed", ..., "provenance.seed is missing"),
        ("provenance.who", "me", "provenance.who is not a field"),
        ("labels", ["a" * 80, "a" * 80], "..."),
    ],
)
def test_a_wrong_field_is_refused_with_its_name_what_was_found_and_what_was_expected(path, value, said):
    with pytest.raises(InvalidModelError, match=r"model\.json: refused: ") as refusal:
        ModelSpec.from_json(changed(path, value), "model.json")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"spec"'])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(InvalidModelError, match=r"model\.json: refused: its spec"):
        ModelSpec.from_json(text, "model.json")
