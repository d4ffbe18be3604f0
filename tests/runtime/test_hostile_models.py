"""Model files whose digest matches and whose metadata is hostile, and paths that are no files."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rewriting import rewritten

from clf_runtime import Classifier, onnx_file
from clf_runtime.diagnostics import info
from clf_runtime.diagnostics.parity import read_parity
from clf_runtime.diagnostics.selftest import SelfTest, SelfTestResult
from clf_runtime.errors import InvalidModelError, ModelChangedError
from clf_runtime.predictions import JsonLinesFormatter, Prediction, Score
from clf_runtime.session import _open
from clf_runtime.spec import ModelSpec


def self_test(**changes: object) -> str:
    """Return a self-test of one case with other values."""
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    case = {"name": "a.png", "image": image, "logits": [1.0, 2.0]}
    return json.dumps({"tolerance": 1e-4, "classes": [0, 1], "cases": [case]} | changes)


DEEP = "[" * 100_000 + "]" * 100_000
NUMBER = "1" * 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "nested too deeply"),
        (f'{{"format": 1, "x": {DEEP}}}', "nested too deeply"),
        (f'{{"format": {NUMBER}}}', "format is 1111"),
        ('{"format": 1, "preprocess": {"color": ' + "[" * 400 + "]" * 400 + "}}", "preprocess.color is [[[["),
        ('{"format": 1, "labels": ["\\ud800", "b"]}', "surrogates not allowed"),
        ("1" * 10_000, "not valid JSON"),
    ],
)
def test_a_hostile_spec_is_an_error_of_one_line(text, message):
    with pytest.raises(InvalidModelError) as error:
        ModelSpec.from_json(text, "model.json")
    assert message in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("field", ["temperature", "normalize", "provenance.seed", "metrics.images", "metrics.loss"])
def test_a_number_of_400_digits_in_the_spec_is_an_error_that_names_the_field(model, field):
    content = json.loads(onnx_file.read(model).metadata["clf.spec"])
    *parents, last = field.split(".")
    target = content
    for parent in parents:
        target = target[parent]
    target[last] = int(NUMBER) if last != "normalize" else {"mean": [int(NUMBER)], "std": [1]}
    with pytest.raises(InvalidModelError, match=field):
        ModelSpec.from_json(json.dumps(content), "model.json")


def test_an_unknown_field_with_a_line_break_is_an_error_of_one_line(model):
    content = json.loads(onnx_file.read(model).metadata["clf.spec"]) | {"a\n\x1b[31m": 1}
    with pytest.raises(InvalidModelError, match=r'"a\\n\\u001b\[31m" is not a field') as error:
        ModelSpec.from_json(json.dumps(content), "model.json")
    assert "\n" not in str(error.value)


def test_one_duplicate_among_many_labels_is_found_in_linear_time(model):
    content = json.loads(onnx_file.read(model).metadata["clf.spec"])
    content["labels"] = [*map(str, range(400_000)), "399999"]  # in quadratic time: half an hour
    with pytest.raises(InvalidModelError, match='labels has "399999" twice'):
        ModelSpec.from_json(json.dumps(content), "model.json")


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "[]",
        "{}",
        self_test(tolerance=float("inf")),
        self_test(tolerance=float("nan")),
        self_test(tolerance=-1),
        self_test(tolerance=int(NUMBER)),
        self_test(classes=[float("inf")]),
        self_test(classes=[0.5, 1]),
        self_test(classes=7),
        self_test(cases=[{"name": "a", "image": "", "logits": [int(NUMBER)]}]),
        self_test(cases=[{"name": "\ud800", "image": "", "logits": [1]}]),
        self_test(cases=[{"name": "a", "image": "*", "logits": [1]}]),
        self_test(cases=[None]),
    ],
)
def test_a_hostile_self_test_is_an_error_of_one_line(text):
    with pytest.raises(InvalidModelError, match=r"^m\.onnx: its clf\.selftest cannot be parsed") as error:
        SelfTest.from_json(text, "m.onnx")
    assert "\n" not in str(error.value)


def test_a_self_test_with_an_unreadable_image_names_the_file_and_the_image(command, model, tmp_path):
    hostile = rewritten(model, tmp_path / "m.onnx", **{"clf.selftest": self_test()})
    done = command("clf-run", "--self-test", "--model", hostile)
    assert done.code == 3
    assert f"{hostile}: image 'a.png' of its clf.selftest cannot be read (" in done.error


def test_a_self_test_with_nan_fails_with_valid_json():
    result = SelfTestResult(1, float("nan"), "a.png", 0, 1e-4, "CPUExecutionProvider")
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (content["passed"], content["max_difference"]) == (False, None)


def test_a_score_that_is_not_a_number_is_null_in_json():
    nan = float("nan")
    prediction = Prediction("a.png", "cat", 0, nan, (Score("cat", nan),), "CPUExecutionProvider")
    record = json.loads(JsonLinesFormatter(False).format(prediction), parse_constant=pytest.fail)
    assert record["score"] is None
    assert record["top"] == [{"label": "cat", "score": None}]


@pytest.mark.parametrize(
    "text", [DEEP, "[1]", "{}", '{"precision": 1}', '{"precision": "fp32", "images": "\\ud800"}', "not JSON"]
)
def test_a_hostile_parity_record_is_an_error_of_one_line(model, tmp_path, text):
    file = onnx_file.read(rewritten(model, tmp_path / "m.onnx", **{"clf.parity": text}))
    with pytest.raises(InvalidModelError, match=r"its clf\.parity ") as error:
        info.table(file, info.Placement(None, None, "not tried"))
    assert "\n" not in str(error.value)


def test_a_model_without_a_parity_record_has_none(model):
    file = onnx_file.read(model)
    assert read_parity(file)["precision"] == "fp32"
    without = {key: value for key, value in file.metadata.items() if key != "clf.parity"}
    assert read_parity(replace(file, metadata=without)) is None


@pytest.mark.parametrize(
    "target", ["loop", "/proc/self/maps", "/proc/self/mem", "/sys/kernel/uevent_seqnum", "/dev/null"]
)
def test_a_path_that_is_no_file_is_an_error_of_one_line(command, tmp_path, target):
    path = Path(target)
    if target == "loop":
        path = tmp_path / "loop"
        path.symlink_to(path)
    elif not path.exists():
        pytest.skip(f"{target} is not here")
    done = command("clf-run", "a.png", "--model", path)
    assert done.code == 3
    assert str(path) in done.error


def test_a_model_whose_path_is_not_utf_8_is_an_error_that_says_so(model, tmp_path):
    path = tmp_path / os.fsdecode(b"model\xff.onnx")
    shutil.copy(model, path)
    with pytest.raises(InvalidModelError, match="onnxruntime opens no path that is not UTF-8; rename it"):
        Classifier.load(path)


def test_a_disk_that_fails_is_not_the_fault_of_the_model(model, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(onnx_file, "_verify_digest", fail)
    with pytest.raises(OSError, match="Input/output error"):
        onnx_file.read(model)


def replace_after_reading(monkeypatch: pytest.MonkeyPatch, path: Path, contents: list[bytes]) -> None:
    """Replace the file each time it has been read, as an update of the device may."""
    read = onnx_file.read

    def read_and_replace(path: Path) -> onnx_file.OnnxFile:
        file = read(path)
        if contents:
            new = path.with_name("new")
            new.write_bytes(contents.pop(0))
            new.replace(path)
        return file

    monkeypatch.setattr(onnx_file, "read", read_and_replace)


def test_a_model_that_is_replaced_while_it_is_opened_has_the_labels_of_its_graph(model, tmp_path, monkeypatch):
    spec = json.loads(onnx_file.read(model).metadata["clf.spec"])
    spec["labels"].reverse()
    reversed_ = rewritten(model, tmp_path / "reversed.onnx", **{"clf.spec": json.dumps(spec)}).read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes())
    replace_after_reading(monkeypatch, path, [reversed_])
    assert list(Classifier.load(path).spec.labels) == spec["labels"]


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_model_that_is_replaced_again_and_again_is_an_error(model, tmp_path, monkeypatch, how):
    path = tmp_path / "model.onnx"
    content = model.read_bytes()
    path.write_bytes(content)
    replace_after_reading(monkeypatch, path, [content] * 3)
    with pytest.raises(ModelChangedError, match=r"it was replaced or changed while it was opened; try again"):
        Classifier.load(path)
    file = onnx_file.read(path)
    if how == "removed":
        path.unlink()
    else:
        os.utime(path, ns=(1, 1))
    with pytest.raises(ModelChangedError):
        file.check_unchanged()


@pytest.mark.slow
def test_of_two_models_that_replace_each_other_all_the_time_none_gets_labels_of_the_other(artifacts, tmp_path):
    """2,226 tries, as many as found 79 mixtures in 0.1.0."""
    plain, quantized = artifacts / "model.onnx", tmp_path / "quantized.onnx"
    spec = json.loads(onnx_file.read(artifacts / "model.int8.onnx").metadata["clf.spec"])
    spec["labels"] = [f"quantized {label}" for label in spec["labels"]]
    rewritten(artifacts / "model.int8.onnx", quantized, **{"clf.spec": json.dumps(spec)})
    pixels = np.full((1, *ModelSpec.from_json(json.dumps(spec), "").preprocess.shape), 99, np.uint8)
    expected = {}
    for path in (plain, quantized):
        with Classifier.load(path) as classifier:
            expected[classifier.spec.labels] = classifier.run(pixels)[0]
    path, ended = tmp_path / "model.onnx", threading.Event()

    def replace_again_and_again() -> None:
        while not ended.is_set():
            for source in (plain, quantized):
                shutil.copy(source, tmp_path / "new.onnx")
                (tmp_path / "new.onnx").replace(path)
                ended.wait(0.01)  # about as long as opening takes, so that most attempts see a replacement, but not all

    shutil.copy(plain, path)
    thread = threading.Thread(target=replace_again_and_again)
    thread.start()
    opened = 0
    try:
        for _ in range(2226):
            with contextlib.suppress(ModelChangedError), Classifier.load(path) as classifier:
                assert np.array_equal(classifier.run(pixels)[0], expected[classifier.spec.labels])
                opened += 1
    finally:
        ended.set()
        thread.join()
    assert opened
    print(f"{opened} opened, all with their own labels")


def test_a_lack_of_descriptors_is_no_fault_of_the_model(model):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            _open(model, ["CPUExecutionProvider"], 1, False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
