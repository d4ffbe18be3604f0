"""The library: a Classifier gives the same answer however it is asked."""

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


@pytest.fixture(scope="module")
def classifier(model):
    return Classifier.load(model, device="cpu")


@pytest.fixture(scope="module")
def parallel(model):
    return Classifier.load(model, device="cpu", threads=2, workers=2)


def test_a_image_gets_its_label_and_a_probability(classifier, samples):
    for path in samples:
        prediction = classifier.predict(path)
        assert prediction.path == str(path)
        assert prediction.label == classifier.spec.labels[prediction.index]
        assert 0 < prediction.score <= 1
        assert prediction.provider == "CPUExecutionProvider"
    right = sum(classifier.predict(path).label == path.name.partition("-")[0] for path in samples)
    assert right >= len(samples) - 1


def test_path_bytes_file_image_and_array_get_the_same_answer(classifier, samples):
    path = samples[3]
    wanted = classifier.predict(str(path))
    opened = Image.open(path)
    for image in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), opened, np.asarray(opened)):
        prediction = classifier.predict(image)
        assert (prediction.label, prediction.score) == (wanted.label, wanted.score)


def test_top_is_in_falling_order_and_begins_with_the_answer(classifier, samples):
    prediction = classifier.predict(samples[0], top=99)
    scores = [each.score for each in prediction.top]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert (prediction.top[0].label, prediction.top[0].score) == (prediction.label, prediction.score)


def test_a_bad_image_raises_alone_and_fails_in_its_place_among_others(classifier, parallel, samples, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    with pytest.raises(ImageError):
        classifier.predict(bad)
    paths = [*samples[:5], bad, *samples[5:], tmp_path / "none.png"]
    for each in (classifier, parallel):
        results = list(each.predict_files(paths, batch_size=4))
        assert [result.path for result in results] == [str(path) for path in paths]
        assert [type(result) for result in results] == [*[Prediction] * 5, Failure, *[Prediction] * 11, Failure]
        assert (results[5].kind, results[-1].kind) == ("not-an-image", "not-found")


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32])
def test_batch_size_and_threads_change_no_answer(classifier, parallel, samples, batch_size):
    wanted = [classifier.predict(path) for path in samples]
    for each in (classifier, parallel):
        for result, one in zip(each.predict_files(samples, batch_size=batch_size), wanted, strict=True):
            assert result.label == one.label
            assert result.score == pytest.approx(one.score, abs=1e-6)


def test_an_endless_stream_of_files_is_read_lazily(parallel, samples):
    taken = []

    def endless():
        for path in itertools.cycle(samples):
            taken.append(path)
            yield path

    stream = parallel.predict_files(endless(), batch_size=4)
    first = list(itertools.islice(stream, 10))
    stream.close()
    assert [result.path for result in first] == [str(path) for path in taken[:10]]
    assert len(taken) <= 40


def test_a_batch_may_mix_every_kind_of_image_and_a_fault_keeps_its_place(parallel, samples):
    image = Image.open(samples[1])
    images = [samples[0], image, b"no image", io.BytesIO(samples[2].read_bytes()), np.asarray(image), "none.png"]
    given = parallel.predict_batch(iter(images * 40), batch_size=4, top=2)
    assert len(given) == 240
    kinds = [getattr(result, "kind", None) for result in given[:6]]
    assert kinds == [None, None, "not-an-image", None, None, "not-found"]
    assert [result.path for result in given[:6]] == [str(samples[0]), None, None, None, None, "none.png"]
    assert given[1].label == given[4].label == parallel.predict(samples[1]).label
    assert len(given[0].top) == 2
    assert parallel.predict_batch([]) == []


def test_paths_may_be_bytes(classifier, samples):
    (result,) = classifier.predict_files([os.fsencode(samples[0])])
    assert (result.path, result.label) == (str(samples[0]), classifier.predict(samples[0]).label)


def test_a_closed_classifier_says_so_and_one_under_way_ends_well(model, samples):
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


def test_many_threads_may_ask_one_classifier(classifier, samples):
    wanted = [classifier.predict(path).score for path in samples]
    given: dict[int, list[float]] = {}

    def ask(number: int) -> None:
        given[number] = [classifier.predict(path).score for path in samples]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(given.values()) == [wanted] * 8


def test_a_spec_that_does_not_fit_the_graph_is_refused(model, tmp_path, classifier):
    spec = classifier.spec.to_json()
    for wrong in (spec.replace('"height": 8', '"height": 16'), spec.replace('"9"', '"9", "ten"')):
        path = rewritten(model, tmp_path / "model.onnx", **{SPEC_KEY: wrong})
        with pytest.raises(InvalidModelError, match=r"its graph takes .* and gives 10 classes, its spec says"):
            Classifier.load(path)


def test_a_graph_with_other_inputs_is_refused(tmp_path, classifier, model):
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])])
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    path = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx", **{SPEC_KEY: classifier.spec.to_json()})
    with pytest.raises(InvalidModelError, match="expected uint8 image to float logits and probabilities"):
        Classifier.load(path)


def test_a_graph_that_onnxruntime_cannot_open_is_refused_in_one_line(tmp_path, classifier, model):
    loaded = onnx.load(model)
    loaded.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "other.onnx").write_bytes(loaded.SerializeToString())
    path = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx")
    with pytest.raises(InvalidModelError, match="refused by onnxruntime") as refused:
        Classifier.load(path)
    assert "\n" not in str(refused.value)


def test_a_model_too_new_for_this_onnxruntime_is_refused_with_the_version_it_needs(model, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.14.1")
    with pytest.raises(InvalidModelError, match=r"opset 18 and IR 8 need onnxruntime 1\.15 or later, here is 1\.14\.1"):
        Classifier.load(model)


def test_the_self_test_passes_where_the_model_was_made(classifier):
    result = run_self_test(classifier)
    assert result.passed
    assert 8 <= result.images <= 16
    assert result.flipped == 0
    assert 0 <= result.max_difference <= 1e-4


def test_the_self_test_is_small(classifier):
    assert len(classifier.file.metadata[SELFTEST_KEY]) <= 300_000


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_the_self_test_fails_where_a_logit_differs(model, tmp_path, classifier, wrong):
    test = SelfTest.from_json(classifier.file.metadata[SELFTEST_KEY], "model.onnx")
    case = test.cases[2]
    shifted = type(case)(case.name, case.image, (case.logits[0] + wrong, *case.logits[1:]))
    changed = SelfTest(test.tolerance, (*test.cases[:2], shifted, *test.cases[3:]))
    path = rewritten(model, tmp_path / "model.onnx", **{SELFTEST_KEY: changed.to_json()})
    result = run_self_test(Classifier.load(path))
    assert not result.passed
    assert result.worst == case.name


def of_classes(test: SelfTest, classes: list[int]) -> SelfTest:
    """Give the same self-test with the logits of some classes only."""
    cases = [type(case)(case.name, case.image, tuple(case.logits[at] for at in classes)) for case in test.cases]
    return SelfTest(test.tolerance, tuple(cases), tuple(classes))


def test_a_self_test_of_some_classes_compares_these_and_still_tells_the_label(model, tmp_path, classifier):
    test = SelfTest.from_json(classifier.file.metadata[SELFTEST_KEY], "model.onnx")
    best = {max(range(10), key=case.logits.__getitem__) for case in test.cases}

    def result(classes: list[int]) -> SelfTestResult:
        content = of_classes(test, classes).to_json()
        return run_self_test(Classifier.load(rewritten(model, tmp_path / "model.onnx", **{SELFTEST_KEY: content})))

    assert result(sorted(best)).passed
    # The best class of one case is not among them: the graph's label is another one than the reference's.
    missing = result([each for each in range(10) if each != min(best)])
    assert not missing.passed
    assert missing.flipped > 0
    assert missing.max_difference <= 1e-4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ('{"tolerance": 1, "cases": [{"name": "a", "image": "%%", "logits": []}]}', "cannot be read"),
        ('{"tolerance": 1, "cases": []}', "does not fit its labels"),
        ("[]", "cannot be read"),
        ('{"tolerance": 1, "classes": 3, "cases": []}', "cannot be read"),
        ('{"tolerance": 1, "classes": [], "cases": [{"name": "", "image": "", "logits": []}]}', "does not fit"),
        ('{"tolerance": 1, "classes": [10], "cases": [{"name": "", "image": "", "logits": [1]}]}', "does not fit"),
        ('{"tolerance": 1, "classes": [-1], "cases": [{"name": "", "image": "", "logits": [1]}]}', "does not fit"),
        ('{"tolerance": 1, "classes": [1, 2], "cases": [{"name": "", "image": "", "logits": [1]}]}', "does not fit"),
        ('{"tolerance": 1, "cases": [{"name": "a", "image": "", "logits": [1]}]}', "does not fit its labels"),
    ],
)
def test_a_self_test_that_cannot_be_replayed_is_refused(model, tmp_path, content, said):
    path = rewritten(model, tmp_path / "model.onnx", **{SELFTEST_KEY: content})
    with pytest.raises(InvalidModelError, match=said):
        run_self_test(Classifier.load(path))


def test_a_file_without_a_self_test_is_refused(model, tmp_path):
    loaded = onnx.load(model)
    kept = [entry for entry in loaded.metadata_props if entry.key != SELFTEST_KEY]
    del loaded.metadata_props[:]
    loaded.metadata_props.extend(kept)
    (tmp_path / "other.onnx").write_bytes(loaded.SerializeToString())
    path = rewritten(tmp_path / "other.onnx", tmp_path / "model.onnx")
    with pytest.raises(InvalidModelError, match=r"it carries no clf\.selftest"):
        run_self_test(Classifier.load(path))


def test_a_model_may_lie_under_any_name(model, tmp_path, samples):
    path = tmp_path / "mödel with spaces\nand a break.onnx"
    shutil.copy(model, path)
    assert Classifier.load(path).predict(samples[0]).label == Classifier.load(model).predict(samples[0]).label
