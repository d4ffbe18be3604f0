"""The library: a Classifier returns the same prediction however it is called."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import threading

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from rewriting import rewritten

from clf_runtime import Classifier, Failure, ImageError, InvalidModelError, Prediction
from clf_runtime.diagnostics.selftest import SelfTest, SelfTestResult, run_self_test
from clf_runtime.onnx_file import SELFTEST_KEY, SPEC_KEY
from clf_runtime.sources import ImageSource


@pytest.fixture(scope="module")
def classifier(model):
    return Classifier.load(model, device="cpu")


@pytest.fixture(scope="module")
def parallel(model):
    return Classifier.load(model, device="cpu", threads=2, workers=2)


def test_an_image_is_classified_with_its_label_and_a_probability(classifier, samples):
    for path in samples:
        prediction = classifier.predict(path)
        assert prediction.path == str(path)
        assert prediction.label == classifier.spec.labels[prediction.index]
        assert 0 < prediction.score <= 1
        assert prediction.provider == "CPUExecutionProvider"
    correct = sum(classifier.predict(path).label == path.name.partition("-")[0] for path in samples)
    assert correct >= len(samples) - 1


def test_path_bytes_file_image_and_array_have_the_same_prediction(classifier, samples):
    path = samples[3]
    expected = classifier.predict(str(path))
    opened = Image.open(path)
    for image in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), opened, np.asarray(opened)):
        prediction = classifier.predict(image)
        assert (prediction.label, prediction.score) == (expected.label, expected.score)


def test_top_is_in_descending_order_and_starts_with_the_label(classifier, samples):
    prediction = classifier.predict(samples[0], top=99)
    scores = [row.score for row in prediction.top]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert (prediction.top[0].label, prediction.top[0].score) == (prediction.label, prediction.score)


def test_a_bad_image_raises_in_predict_and_is_a_failure_in_its_place_in_predict_files(
    classifier, parallel, samples, tmp_path
):
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    with pytest.raises(ImageError):
        classifier.predict(bad)
    paths = [*samples[:5], bad, *samples[5:], tmp_path / "none.png"]
    for variant in (classifier, parallel):
        results = list(variant.predict_files(paths, batch_size=4))
        assert [result.path for result in results] == [str(path) for path in paths]
        assert [type(result) for result in results] == [*[Prediction] * 5, Failure, *[Prediction] * 11, Failure]
        assert (results[5].kind, results[-1].kind) == ("not-an-image", "not-found")


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32])
def test_batch_size_and_threads_do_not_change_predictions(classifier, parallel, samples, batch_size):
    expected = [classifier.predict(path) for path in samples]
    for variant in (classifier, parallel):
        for result, single in zip(variant.predict_files(samples, batch_size=batch_size), expected, strict=True):
            assert result.label == single.label
            assert result.score == pytest.approx(single.score, abs=1e-6)


def test_an_infinite_iterable_of_files_is_read_lazily(parallel, samples):
    taken = []

    def infinite():
        for path in itertools.cycle(samples):
            taken.append(path)
            yield path

    stream = parallel.predict_files(infinite(), batch_size=4)
    first = list(itertools.islice(stream, 10))
    stream.close()
    assert [result.path for result in first] == [str(path) for path in taken[:10]]
    assert len(taken) <= 40


def test_a_batch_may_mix_all_kinds_of_images_and_a_failure_keeps_its_place(parallel, samples):
    image = Image.open(samples[1])
    images = [samples[0], image, b"no image", io.BytesIO(samples[2].read_bytes()), np.asarray(image), "none.png"]
    results = parallel.predict_batch(iter(images * 40), batch_size=4, top=2)
    assert len(results) == 240
    kinds = [getattr(result, "kind", None) for result in results[:6]]
    assert kinds == [None, None, "not-an-image", None, None, "not-found"]
    assert [result.path for result in results[:6]] == [str(samples[0]), None, None, None, None, "none.png"]
    assert results[1].label == results[4].label == parallel.predict(samples[1]).label
    assert len(results[0].top) == 2
    assert parallel.predict_batch([]) == []


def test_paths_may_be_bytes(classifier, samples):
    (result,) = classifier.predict_files([os.fsencode(samples[0])])
    assert (result.path, result.label) == (str(samples[0]), classifier.predict(samples[0]).label)


def test_a_closed_classifier_raises_value_error_also_in_a_stream_in_progress(model, samples):
    with Classifier.load(model, device="cpu", threads=2, workers=2) as classifier:
        stream = classifier.predict_files(itertools.cycle(samples))
        assert isinstance(next(stream), Prediction)
    with pytest.raises(ValueError, match="this Classifier is closed"):
        for _ in stream:
            pass
    with pytest.raises(ValueError, match="this Classifier is closed"):
        classifier.predict(samples[0])
    assert classifier.provider == "CPUExecutionProvider"
    classifier.close()


def test_several_threads_may_use_one_classifier(classifier, samples):
    expected = [classifier.predict(path).score for path in samples]
    scores: dict[int, list[float]] = {}

    def classify(number: int) -> None:
        scores[number] = [classifier.predict(path).score for path in samples]

    threads = [threading.Thread(target=classify, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(scores.values()) == [expected] * 8


def test_a_spec_that_disagrees_with_the_graph_is_an_error(model, tmp_path, classifier):
    spec = classifier.spec.to_json()
    for wrong in (spec.replace('"height": 8', '"height": 16'), spec.replace('"9"', '"9", "ten"')):
        path = rewritten(model, tmp_path / "model.onnx", **{SPEC_KEY: wrong})
        with pytest.raises(InvalidModelError, match=r"its graph and its spec disagree \(graph: .* 10 classes; spec: "):
            Classifier.load(path)


def test_a_graph_with_other_inputs_is_an_error(tmp_path, classifier, model):
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])])
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    path = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx", **{SPEC_KEY: classifier.spec.to_json()})
    with pytest.raises(InvalidModelError, match="expected uint8 image and float logits and probabilities"):
        Classifier.load(path)


def test_a_graph_that_onnxruntime_cannot_open_is_an_error_in_one_line(tmp_path, classifier, model):
    loaded = onnx.load(model)
    loaded.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "other.onnx").write_bytes(loaded.SerializeToString())
    path = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx")
    with pytest.raises(InvalidModelError, match=r"onnxruntime \S+ cannot open it") as error:
        Classifier.load(path)
    assert "\n" not in str(error.value)


def test_a_model_too_new_for_this_onnxruntime_is_an_error_with_the_version_it_needs(model, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.14.1")
    with pytest.raises(InvalidModelError, match=r"opset 18 and IR 8 need onnxruntime 1\.15 or later, found 1\.14\.1"):
        Classifier.load(model)


def test_the_self_test_passes_on_the_machine_of_the_export(classifier):
    result = run_self_test(classifier)
    assert result.passed
    assert 8 <= result.images <= 16
    assert result.flipped == 0
    assert 0 <= result.max_difference <= 1e-4


def test_the_self_test_is_small(classifier):
    assert len(classifier.file.metadata[SELFTEST_KEY]) <= 300_000


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_the_self_test_fails_if_a_logit_differs(model, tmp_path, classifier, wrong):
    test = SelfTest.from_json(classifier.file.metadata[SELFTEST_KEY], "model.onnx")
    case = test.cases[2]
    shifted = type(case)(case.name, case.image, (case.logits[0] + wrong, *case.logits[1:]))
    changed = SelfTest(test.tolerance, (*test.cases[:2], shifted, *test.cases[3:]))
    path = rewritten(model, tmp_path / "model.onnx", **{SELFTEST_KEY: changed.to_json()})
    result = run_self_test(Classifier.load(path))
    assert not result.passed
    assert result.worst_image == case.name


def with_classes(test: SelfTest, classes: list[int]) -> SelfTest:
    """Return the same self-test with the logits of some classes only."""
    cases = [
        type(case)(case.name, case.image, tuple(case.logits[position] for position in classes)) for case in test.cases
    ]
    return SelfTest(test.tolerance, tuple(cases), tuple(classes))


def test_a_self_test_with_some_classes_compares_their_logits_and_the_label(model, tmp_path, classifier):
    test = SelfTest.from_json(classifier.file.metadata[SELFTEST_KEY], "model.onnx")
    best = {max(range(10), key=case.logits.__getitem__) for case in test.cases}

    def result(classes: list[int]) -> SelfTestResult:
        content = with_classes(test, classes).to_json()
        return run_self_test(Classifier.load(rewritten(model, tmp_path / "model.onnx", **{SELFTEST_KEY: content})))

    assert result(sorted(best)).passed
    # Without the best class of one case, the label of the graph differs from that of the reference.
    missing = result([label for label in range(10) if label != min(best)])
    assert not missing.passed
    assert missing.flipped > 0
    assert missing.max_difference <= 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be parsed"),
        ('{"tolerance": 1, "cases": [{"name": "a", "image": "%%", "logits": []}]}', "cannot be parsed"),
        ('{"tolerance": 1, "cases": []}', "does not match its labels"),
        ("[]", "cannot be parsed"),
        ('{"tolerance": 1, "classes": 3, "cases": []}', "cannot be parsed"),
        (
            '{"tolerance": 1, "classes": [], "cases": [{"name": "", "image": "", "logits": []}]}',
            "does not match its labels",
        ),
        (
            '{"tolerance": 1, "classes": [10], "cases": [{"name": "", "image": "", "logits": [1]}]}',
            "does not match its labels",
        ),
        (
            '{"tolerance": 1, "classes": [-1], "cases": [{"name": "", "image": "", "logits": [1]}]}',
            "does not match its labels",
        ),
        (
            '{"tolerance": 1, "classes": [1, 2], "cases": [{"name": "", "image": "", "logits": [1]}]}',
            "does not match its labels",
        ),
        ('{"tolerance": 1, "cases": [{"name": "a", "image": "", "logits": [1]}]}', "does not match its labels"),
    ],
)
def test_a_self_test_that_cannot_be_run_is_an_error(model, tmp_path, content, message):
    path = rewritten(model, tmp_path / "model.onnx", **{SELFTEST_KEY: content})
    with pytest.raises(InvalidModelError, match=message):
        run_self_test(Classifier.load(path))


def test_a_file_without_a_self_test_is_an_error(model, tmp_path):
    loaded = onnx.load(model)
    entries = [entry for entry in loaded.metadata_props if entry.key != SELFTEST_KEY]
    del loaded.metadata_props[:]
    loaded.metadata_props.extend(entries)
    (tmp_path / "other.onnx").write_bytes(loaded.SerializeToString())
    path = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx")
    with pytest.raises(InvalidModelError, match=r"it contains no clf\.selftest"):
        run_self_test(Classifier.load(path))


def test_a_model_file_may_have_any_name(model, tmp_path, samples):
    path = tmp_path / "mödel with spaces\nand a break.onnx"
    shutil.copy(model, path)
    assert Classifier.load(path).predict(samples[0]).label == Classifier.load(model).predict(samples[0]).label


def test_sources_are_yielded_with_their_results_in_order(parallel, samples, tmp_path):
    sources = [
        ImageSource(f"image {number}", str(path)) for number, path in enumerate([*samples, tmp_path / "none.png"])
    ]
    pairs = list(parallel.predict_sources(sources, batch_size=4))
    assert [source for source, _ in pairs] == sources
    assert [result.path for _, result in pairs] == [source.name for source in sources]
    assert [type(result) for _, result in pairs] == [*[Prediction] * len(samples), Failure]
