"""`clf-eval`: real models on real labeled images, in this process and as a command."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import pytest
from click.testing import CliRunner

from clf_runtime import onnx_file
from clf_runtime.errors import ClfError, DataError, InvalidModelError
from clf_runtime.evaluation import cli, evaluate, figures, latency, mistakes, thumbnails
from clf_runtime.evaluation.compare import compare
from clf_runtime.evaluation.evaluate import EvalOptions
from clf_runtime.evaluation.formatting import format_interval, format_p_value, format_percent
from clf_runtime.evaluation.labels import match_labels
from clf_runtime.evaluation.latency import Latency
from clf_runtime.evaluation.markup import Markup, element
from clf_runtime.evaluation.metrics import ScoredImages, compute_metrics
from clf_runtime.evaluation.page import html_from_evaluation
from clf_runtime.evaluation.results import Evaluation, ModelResult
from clf_runtime.evaluation.selection import EvalImages, select_images
from clf_runtime.evaluation.table import format_evaluation
from clf_runtime.evaluation.terminal import TerminalCallbacks
from clf_runtime.evaluation.training_split import find_training_test_split
from clf_runtime.labeled import Columns, find_labeled_images
from clf_runtime.onnx_file import OnnxFile

if TYPE_CHECKING:
    from clf_train.data.dataset import Dataset

FILES = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")


@pytest.fixture
def few(samples, tmp_path) -> Path:
    """A folder of 16 images in class folders."""
    for sample in samples:
        folder = tmp_path / "few" / sample.name.partition("-")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample, folder)
    return tmp_path / "few"


@pytest.fixture
def pairs(few) -> Path:
    """A folder of at least two images in each class folder, so that it can be split."""
    for image in list(few.rglob("*.png")):
        shutil.copy(image, image.with_stem(f"{image.stem}-again"))
    return few


class Recorder:
    """Callbacks that remember the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.images: list[int] = []

    def on_warning(self, message: str) -> None:
        self.warnings.append(message)

    def on_start(self, images: int) -> None:
        self.images.append(images)

    def on_image(self) -> None:
        self.images.append(1)


def run(data: Path, *models: Path, **changes: object) -> tuple[Evaluation, Recorder]:
    """Evaluate models in this process."""
    options = {"columns": Columns(), "split": None, "device": "cpu", "threads": 2, "batch_size": 8, "top": 5} | changes
    callbacks = Recorder()
    return evaluate.evaluate(EvalOptions(models=models, data=data, **options), callbacks), callbacks


def invoke(*arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code and both outputs."""
    separately = {"mix_stderr": False} if version("click") < "8.2" else {}
    done = CliRunner(**separately).invoke(cli.command, [*map(str, arguments)], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.return_value, done.stdout, done.stderr


def make_result(
    labels: tuple[str, ...], targets: list[int], predicted: list[int], name: str, model: Path
) -> ModelResult:
    """Return what a model with these labels and predictions would have reached."""
    file = onnx_file.read(model)
    spec = replace(file.spec, labels=labels)
    file = replace(file, spec=spec, path=Path(name))
    count = len(targets)
    scored = ScoredImages(
        np.asarray(targets), np.asarray(predicted), np.full(count, 0.9), np.full(count, 0.1), np.ones(count, np.int64)
    )
    return ModelResult(
        file=file,
        provider="CPUExecutionProvider",
        match=match_labels(labels, labels, ("data", name)),
        positions=np.arange(count),
        scored=scored,
        metrics=compute_metrics(scored, labels, 5),
        failures=(),
        throughput=5,
        latency=Latency(1, 100, 200),
    )


def make_evaluation(results: list[ModelResult]) -> Evaluation:
    """Return an evaluation of images that do not exist (any more)."""
    labels = tuple(results[0].labels[target] for target in results[0].scored.targets)
    names = tuple(f"{number}.png" for number in range(len(labels)))
    images = EvalImages(Path("data"), "test", names, labels, tuple(f"none/{name}" for name in names), ())
    return Evaluation(images, tuple(results), tuple(compare(results[0], other, images) for other in results[1:]), ())


class Page(HTMLParser):
    """The elements and the text of a page; every element must be closed."""

    VOID = ("img", "meta", "br", "line", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def test_the_accuracy_of_every_precision_equals_that_of_clf_export(digits, artifacts):
    evaluation, callbacks = run(digits, *(artifacts / name for name in FILES))
    exported = json.loads((artifacts / "export.json").read_text())
    spec = json.loads((artifacts / "model.json").read_text())
    for name, result in zip(FILES, evaluation.results, strict=True):
        assert (result.metrics.accuracy, result.metrics.images) == (exported[name]["accuracy"], 359)
        assert result.precision == exported[name]["precision"]
        assert result.provider == "CPUExecutionProvider"
    assert evaluation.results[0].metrics.loss == pytest.approx(spec["metrics"]["loss"], abs=1e-4)
    assert evaluation.results[0].metrics.calibration_error == pytest.approx(
        spec["metrics"]["calibration_error"], abs=1e-3
    )
    assert evaluation.is_complete
    assert callbacks.warnings == []
    assert callbacks.images == [3 * 359, *(1,) * 3 * 359]


def test_one_thread_gives_the_same_results(few, model):
    alone, many = (run(few, model, threads=threads)[0].results[0] for threads in (1, 2))
    assert (alone.scored.predicted == many.scored.predicted).all()
    assert alone.scored.confidence == pytest.approx(many.scored.confidence, abs=1e-6)
    assert alone.latency.total_ms > 0


def test_the_command_prints_json_that_repeats_every_number(command, digits, artifacts, tmp_path):
    models = (artifacts / "model.onnx", artifacts / "model.int8.onnx")
    done = command("clf-eval", *models, "--data", digits, "--format", "json", "--html", "eval.html")
    assert done.code == 0, done.err
    assert done.error == "clf-eval: wrote eval.html"
    content = json.loads(done.out)
    assert set(content) == {
        *("format", "date", "machine", "versions", "data", "warnings", "unreadable", "models", "comparisons")
    }
    assert content["format"] == 1
    assert content["data"]["images"] == sum(content["data"]["labels"].values()) == 359
    for entry, path in zip(content["models"], models, strict=True):
        assert entry["model"] == str(path)
        assert entry["sha256"] == onnx_file.read(path).sha256
        assert entry["accuracy"] == entry["correct"] / entry["images"]
        assert entry["interval"][0] < entry["accuracy"] < entry["interval"][1]
        assert sum(row["images"] for row in entry["confusions"]) == 359
        assert sum(row["correct"] for row in entry["classes"]) == entry["correct"]
        assert len(entry["mistakes"]) == 359 - entry["correct"]
        assert all(Path(row["path"]).parent.name == row["label"] != row["predicted"] for row in entry["mistakes"])
        assert all(row["label_rank"] >= 2 for row in entry["mistakes"])
        assert sum(row["images"] for row in entry["calibration"]) == 359
        assert entry["throughput"] > 0
        assert entry["latency"]["total_ms"] > 0
    (comparison,) = content["comparisons"]
    assert (comparison["images"], comparison["second"]) == (359, str(models[1]))
    page = Page((tmp_path / "eval.html").read_text())
    assert "model.int8.onnx" in page.text
    assert content["models"][0]["sha256"][:12] in page.text


def test_a_table_of_one_model_shows_classes_confusions_and_mistakes(digits, model):
    code, out, err = invoke(model, "--data", digits)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    metrics = run(digits, model)[0].results[0].metrics
    assert f"accuracy            {format_percent(metrics.accuracy)}" in lines
    assert f"  95 % interval     {format_interval(metrics.interval)}" in lines
    assert any(line.startswith("label  images  precision   recall       F1") for line in lines)
    assert any(line.startswith("true \\ predicted   0   1") for line in lines)
    assert sum(str(digits) in line for line in lines) == 1 + 359 - metrics.correct


def test_the_models_of_the_artifacts_folder_are_compared_by_default(few, artifacts):
    code, out, _ = invoke("-a", artifacts, "--data", few)
    assert code == 0
    assert re.search(r"model\.onnx +model\.fp16\.onnx +model\.int8\.onnx", out)
    assert "model.fp16.onnx against" in out
    assert cli.find_onnx_files(Path("none")) == (Path("none/model.onnx"),)


def test_results_can_be_written_to_a_file(few, model, tmp_path):
    code, out, _ = invoke(model, "--data", few, "--output", tmp_path / "eval.txt")
    assert (code, out) == (0, "")
    assert (tmp_path / "eval.txt").read_text().endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "few", "-o", "x.html", "--html", "x.html"), 2, "--output and --html name the same file"),
        (("--data", "few", "--html", "none/x.html"), 2, "--html none/x.html: folder none does not exist"),
        (("--data", "few", "--label-column", "x"), 2, "--label-column x: applies to a table"),
        (("--data", "few", "--split", "test"), 3, "few: its images are in no split; leave out --split test"),
        (("--data", "none"), 3, "none: no such folder"),
        (("--data", "few", "none.onnx"), 3, "none.onnx: model not found"),
        (("--data", "few", "--device", "tpu"), 2, "--device tpu: unknown device"),
    ],
)
def test_a_wrong_argument_is_an_error_before_anything_is_evaluated(few, model, monkeypatch, arguments, code, message):
    monkeypatch.chdir(few.parent)
    with pytest.raises((ClfError, click.UsageError)) as error:
        invoke(*arguments, *(() if "none.onnx" in arguments else (model,)))
    assert error.value.exit_code == code
    assert message in str(error.value)


def test_an_accuracy_below_the_minimum_is_exit_code_3_after_the_results(few, model):
    labels = sorted(few.iterdir())
    labels[0].rename(few / "x")
    labels[1].rename(labels[0])
    (few / "x").rename(labels[1])
    code, out, err = invoke(model, "--data", few, "--min-accuracy", 99)
    assert code == 3
    assert "accuracy" in out
    assert re.search(rf"clf-eval: {model}: accuracy [\d.]+ %, expected 99 %", err)
    assert invoke(model, "--data", few, "--min-accuracy", 10)[0] == 0


def test_unreadable_images_are_listed_and_the_others_are_evaluated(few, model, tmp_path):
    (few / "0/letter.png").write_text("Dear Sir or Madam")
    (few / "1/nothing.png").touch()
    code, out, err = invoke(model, "--data", few, "--html", tmp_path / "eval.html")
    assert code == 1
    assert "  correct           16 of 16" in out
    assert "letter.png: not-an-image" in err
    assert "2 of 18 images cannot be read" in err
    assert "2 images could not be read" in Page((tmp_path / "eval.html").read_text()).text


def test_many_unreadable_images_are_counted_and_the_first_are_listed(few, model):
    for number in range(12):
        (few / f"0/{number}.png").touch()
    code, _, err = invoke(model, "--data", few)
    assert code == 1
    assert err.count(": empty: ") == 10
    assert "12 of 28 images cannot be read (the first 10 are above)" in err


def test_data_without_a_readable_image_is_an_error(tmp_path, model):
    for label in "01":
        (tmp_path / "bad" / label).mkdir(parents=True)
        (tmp_path / "bad" / label / "a.png").touch()
    with pytest.raises(DataError, match=r"bad: none of its 2 images can be read; the first is .*a\.png: empty"):
        run(tmp_path / "bad", model)


def test_labels_that_the_model_lacks_are_left_out_with_a_warning_and_exit_code_1(few, model):
    (few / "7").rename(few / "seven")
    evaluation, callbacks = run(few, model)
    assert not evaluation.is_complete
    assert "seven" in callbacks.warnings[0]
    assert "are left out, because the model does not have their labels" in callbacks.warnings[0]
    assert "1 of its 10 labels have no image: 7" in callbacks.warnings[1]
    assert callbacks.warnings[0] in Page(html_from_evaluation(evaluation)).text
    code, _, err = invoke(model, "--data", few)
    assert code == 1
    assert "seven" in err


def test_a_misspelled_label_gets_a_suggestion_and_another_case_is_accepted(model):
    match = match_labels(["Dress", "skrt", "hat"], ["dress", "skirt", "pants"], ("data", "model"))
    file = onnx_file.read(model)
    spec = replace(file.spec, labels=("dress", "skirt", "pants"))
    stub = type("Loaded", (), {"file": file, "spec": spec})()
    images = EvalImages(Path("data"), "all", ("a", "b", "c"), ("Dress", "skrt", "hat"), ("a", "b", "c"), ())
    respelled, unknown, unused = evaluate._describe_match(match, images, stub)
    assert "labels that differ only in case, spaces, hyphens or underscores: Dress = dress" in respelled
    assert "2 images are left out, because the model does not have their labels: hat, skrt (is it skirt?)" in unknown
    assert "2 of its 3 labels have no image: skirt, pants" in unused


def test_data_of_another_model_is_exit_code_3(command, few, model, tmp_path):
    for number, folder in enumerate(sorted(few.iterdir())):
        folder.rename(few / f"class {'abcdefghijklm'[number]}")
    done = command("clf-eval", model, "--data", "few")
    assert done.code == 3
    assert "none of its labels is one of" in done.error


def test_all_models_are_opened_before_the_first_is_evaluated(few, model, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(model.read_bytes()[:-1])
    callbacks = Recorder()
    options = EvalOptions((model, tmp_path / "bad.onnx"), few, Columns(), None, "cpu", 1, 8, 5)
    with pytest.raises(InvalidModelError, match=r"bad\.onnx"):
        evaluate.evaluate(options, callbacks)
    assert callbacks.images == []


def test_the_test_split_is_preferred_and_the_validation_split_comes_with_a_warning(few, model, tmp_path):
    for split in ("train", "val", "test"):
        shutil.copytree(few, tmp_path / "three" / split)
    images = run(tmp_path / "three", model)[0].images
    assert (images.split, len(images)) == ("test", 16)
    assert all(name.startswith("test/") for name in images.names)
    assert len(run(tmp_path / "three", model, split="all")[0].images) == 48
    shutil.rmtree(tmp_path / "three/test")
    evaluation, callbacks = run(tmp_path / "three", model)
    assert evaluation.images.split == "validation"
    assert callbacks.warnings == ["there is no test split; evaluating the validation split"]
    with pytest.raises(DataError, match="has no test split; expected one of train, validation, all for --split"):
        run(tmp_path / "three", model, split="test")


def with_provenance(model: Path, **changes: object) -> OnnxFile:
    """Return the model file as if its training had been another one."""
    file = onnx_file.read(model)
    return replace(file, spec=replace(file.spec, provenance=replace(file.spec.provenance, **changes)))


def load_training_data(data: Path, columns: Columns, seed: int = 0) -> Dataset:
    """Return what clf-train would train on."""
    pytest.importorskip("torch")
    from clf_train.config import DataSource, load_dataset

    return load_dataset(DataSource(data=str(data), data_root="", test_split=0.2, seed=seed, columns=columns))


def trained_on(model: Path, data: Path, seed: int = 0, group_by: str | None = None) -> tuple[OnnxFile, tuple[str, ...]]:
    """Return the model as if it had been trained on a folder, and the names of the images of its test split."""
    columns = Columns(group_by=group_by)
    dataset = load_training_data(data, columns, seed)
    fingerprint, chosen = dataset.test.fingerprint(), columns.to_dict() or None
    file = with_provenance(model, data=str(data), fingerprint=fingerprint, seed=seed, columns=chosen)
    return file, dataset.test.names


def select(data: Path, split: str | None, *models: OnnxFile) -> EvalImages:
    return select_images(data, Columns(), split, models)


def test_on_the_data_of_the_training_only_its_test_split_is_evaluated(digits, model):
    file, names = trained_on(model, digits)
    for split in (None, "test"):
        images = select(digits, split, file)
        assert (images.names, images.split) == (names, "test")
        assert images.warnings == (f"{model}: was trained on this data; {len(names)} images of 359 are its test split",)
    everything = select(digits, "all", file)
    assert len(everything) == 359
    assert everything.warnings[-1].endswith("the accuracy is too high, because training used most of these images")


def test_of_two_trainings_only_the_images_that_neither_saw_are_evaluated(digits, model):
    (first, names), (second, others) = trained_on(model, digits, 0), trained_on(model, digits, 1)
    assert set(select(digits, None, first, second).names) == set(names) & set(others)
    assert set(select(digits, None, first, onnx_file.read(model)).names) == set(names)


def test_trainings_without_a_common_test_image_are_an_error(few, model):
    shutil.rmtree(few)
    for label in "01":
        (few / label).mkdir(parents=True)
        for number in range(3):
            (few / label / f"{number}.png").write_text(f"{label} {number}")
    trained = [trained_on(model, few, seed) for seed in range(9)]
    first, second = trained[0], next(other for other in trained if not set(other[1]) & set(trained[0][1]))
    with pytest.raises(DataError, match="the test splits of the models have no image in common"):
        select(few, None, first[0], second[0])


def test_the_groups_of_the_training_are_found_again(digits, model):
    file, names = trained_on(model, digits, group_by=r"\d/\d")
    assert select(digits, None, file).names == names
    unknown = with_provenance(model, fingerprint="0", columns={"group_by": "("})
    assert len(select(digits, None, unknown)) == 359


def test_the_groups_of_a_manifest_with_other_column_names_are_found_again(pairs, model):
    rows = [f"{image.relative_to(pairs)},{image.parent.name},{image.stem}" for image in sorted(pairs.rglob("*.png"))]
    manifest = pairs / "images.csv"
    manifest.write_text("\n".join(["photo,kind,camera", *rows]) + "\n")
    columns = Columns(image="photo", label="kind", group_by="camera")
    dataset = load_training_data(manifest, columns)
    file = with_provenance(model, fingerprint=dataset.test.fingerprint(), seed=0, columns=columns.to_dict())
    assert select_images(manifest, replace(columns, group_by=None), None, [file]).names == dataset.test.names


def test_changed_data_of_the_training_is_evaluated_with_a_warning(pairs, model):
    file, _ = trained_on(model, pairs)
    for image in pairs.rglob("*.png"):
        image.write_bytes(image.read_bytes() + b" ")
    images = select(pairs, None, file)
    assert len(images) == 32
    assert "whose images changed since" in images.warnings[0]


def test_an_image_that_cannot_be_read_is_no_reason_to_end_the_search_for_the_training_split(pairs, model, tmp_path):
    file, _ = trained_on(model, pairs)
    shutil.make_archive(str(tmp_path / "few"), "zip", pairs)
    archived = find_labeled_images(tmp_path / "few.zip")
    (tmp_path / "few.zip").unlink()
    assert find_training_test_split(archived, tmp_path / "few.zip", Columns(), file.spec.provenance) is None


def test_without_a_fingerprint_all_images_are_evaluated(few, model):
    for file in (with_provenance(model, fingerprint=None), onnx_file.read(model)):
        assert select(few, None, file).split == "all"
    file = onnx_file.read(model)
    assert select(few, None, replace(file, spec=replace(file.spec, provenance=None))).warnings == ()


def test_a_manifest_with_columns_of_any_name_is_evaluated(few, model, tmp_path):
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", "digit", "part"])
        for number, path in enumerate(sorted(few.rglob("*.png"))):
            rows.writerow([path.relative_to(tmp_path), path.parent.name, "test" if number % 2 else "train"])
    columns = ("--image-column", "picture", "--label-column", "digit", "--split-column", "part")
    code, out, _ = invoke(model, "--data", tmp_path / "labels.csv", *columns)
    assert code == 0
    assert "test split, 8 images" in out


def test_an_archive_is_evaluated_in_place_and_a_damaged_member_is_one_failure(few, model, tmp_path):
    (few / "0/empty.png").touch()
    with zipfile.ZipFile(tmp_path / "few.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(few.rglob("*.png")):
            archive.write(path, path.relative_to(few))
    evaluation, _ = run(tmp_path / "few.zip", model)
    assert evaluation.results[0].metrics.correct == 16
    assert [failure.kind for failure in evaluation.failures] == ["empty"]


def test_the_page_shows_the_mistakes_with_their_names_and_loads_nothing(few, model):
    labels = sorted(few.iterdir())
    shutil.copy(next(labels[3].iterdir()), labels[4] / "wrong <b> & name.png")
    evaluation, _ = run(few, model)
    text = html_from_evaluation(evaluation)
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1
    assert images[0]["src"].startswith("data:image/png;base64,")
    assert "wrong <b> & name.png" in page.text
    assert "<b> &" not in text
    assert "http" not in re.sub("http-equiv", "", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_a_page_without_mistakes_says_so(few, model):
    assert Page(html_from_evaluation(run(few, model)[0])).text.count("There are none.") == 1


def test_hostile_labels_are_escaped_everywhere(model):
    labels = ('<script>alert("1")</script>', "a\nb", "x" * 500)
    results = [make_result(labels, [0, 1, 2], [1, 2, predicted], f"{predicted}.onnx", model) for predicted in (0, 1)]
    evaluation = make_evaluation(results)
    text = html_from_evaluation(evaluation)
    assert "<script" not in text
    assert "x" * 501 not in text
    Page(text)
    assert "a\nb" not in format_evaluation(evaluation)


def test_many_classes_and_mistakes_are_abbreviated(model):
    labels = tuple(f"class {number}" for number in range(60))
    predicted = [(number + 1) % 60 for number in range(60)] * 20
    result = make_result(labels, [*range(60)] * 20, predicted, "a.onnx", model)
    text = format_evaluation(make_evaluation([result]))
    assert "the 40 classes with the lowest F1, of 60 (--format json has all)" in text
    assert "true \\ predicted" not in text
    assert "and 1,190 more (--html or --format json has all)" in text
    page = Page(html_from_evaluation(make_evaluation([result])))
    assert "The 30 most frequent confusions." in page.text
    assert "1,140 more" in page.text
    assert "140 more are not shown; --format json has all." in page.text


def test_many_classes_without_a_mistake_have_no_confusions(model):
    labels = tuple(f"class {number}" for number in range(60))
    evaluation = make_evaluation([make_result(labels, [*range(60)], [*range(60)], "a.onnx", model)])
    assert Page(html_from_evaluation(evaluation)).text.count("There are none.") == 2
    assert format_evaluation(evaluation).endswith("no mistakes")


def test_a_matrix_of_many_classes_has_colors_without_numbers(model):
    labels = tuple(f"class {number}" for number in range(30))
    result = make_result(labels, [*range(30)], [0, *range(29)], "a.onnx", model)
    drawn = figures.draw_confusions(result)
    assert "matrix small" in drawn
    assert "Hover over a cell" in drawn


def test_models_are_compared_with_a_paired_test_and_the_changed_images(model):
    targets = [0] * 20
    first = make_result(("a", "b"), targets, [0] * 8 + [1] * 12, "first.onnx", model)
    second = make_result(("a", "b"), targets, [0] * 20, "second.onnx", model)
    evaluation = make_evaluation([first, second])
    (comparison,) = evaluation.comparisons
    assert (comparison.only_first, comparison.only_second, comparison.difference) == (0, 12, 0.6)
    assert comparison.p_value == pytest.approx(2 / 2**12)
    text = format_evaluation(evaluation)
    assert "+60.00 pp (p < 0.001, exact McNemar test), more than chance explains; 12 of 20 predictions changed" in text
    assert re.search(r"none/8\.png +a +b +a \(right\)", text)
    assert "and 2 more (--html or --format json has all)" in text
    assert "12 images with another prediction" in Page(html_from_evaluation(evaluation)).text


def test_a_small_difference_can_be_chance(model):
    results = [make_result(("a", "b"), [0] * 4, [0, 0, 0, last], f"{last}.onnx", model) for last in (1, 0)]
    assert "chance can explain it" in format_evaluation(make_evaluation(results))


def test_models_with_differently_spelled_labels_agree(model):
    first = make_result(("red fox", "cow"), [0, 1], [0, 0], "a.onnx", model)
    second = make_result(("Red_Fox", "cow"), [0, 1], [0, 0], "b.onnx", model)
    evaluation = make_evaluation([first, second])
    assert evaluation.comparisons[0].changes == ()
    assert re.search(r"^red fox +1 +66\.7 % +-$", format_evaluation(evaluation), flags=re.MULTILINE)


def test_models_that_share_no_image_have_no_difference(model):
    first = make_result(("a", "b"), [0], [0], "a.onnx", model)
    second = replace(make_result(("a", "b"), [0], [0], "b.onnx", model), positions=np.asarray([7]))
    assert make_evaluation([first, second]).comparisons[0].difference == 0


def test_models_of_the_same_file_name_are_shown_with_their_paths(model):
    results = [make_result(("a", "b"), [0], [0], f"{folder}/model.onnx", model) for folder in ("x", "y")]
    assert make_evaluation(results).names == ("x/model.onnx", "y/model.onnx")


def test_a_file_without_a_parity_record_has_an_unknown_precision(model):
    result = make_result(("a", "b"), [0], [0], "a.onnx", model)
    file = replace(result.file, metadata={})
    assert replace(result, file=file).precision == "unknown"


def test_probabilities_that_overflowed_are_a_mistake_without_confidence():
    scores = evaluate._Scores()
    scores.add(3, 1, np.asarray([np.nan, np.nan, np.nan], np.float32))
    scores.add(4, 1, np.asarray([0.25, 0.25, 0.5], np.float32))
    scored = scores.to_scored_images()
    assert scored.predicted.tolist() == [0, 2]
    assert scored.confidence.tolist() == [0, 0.5]
    assert scored.rank.tolist() == [1, 2]


def test_an_image_that_vanishes_has_no_thumbnail_and_no_latency(few, model):
    evaluation, _ = run(few, model)
    (source,) = evaluation.images.sources([0])
    preprocess = evaluation.results[0].file.spec.preprocess
    assert thumbnails.thumbnail_uri(source, preprocess).startswith("data:image/png")
    shutil.rmtree(few)
    assert thumbnails.thumbnail_uri(source, preprocess) is None
    assert "<img" not in mistakes._draw_mistake(evaluation.results[0], 0, evaluation)
    with evaluate._load(model, EvalOptions((), few, Columns(), None, "cpu", 1, 8, 5), 1) as classifier:
        assert latency.measure_latency(classifier, [source]) == Latency(0, 0, 0)


def test_a_member_of_an_archive_that_vanishes_has_no_thumbnail(few, model, tmp_path):
    shutil.make_archive(str(tmp_path / "few"), "zip", few)
    evaluation, _ = run(tmp_path / "few.zip", model)
    (tmp_path / "few.zip").unlink()
    (source,) = evaluation.images.sources([0])
    assert thumbnails.thumbnail_uri(source, evaluation.results[0].file.spec.preprocess) is None
    with evaluate._load(model, EvalOptions((), few, Columns(), None, "cpu", 1, 8, 5), 1) as classifier:
        assert latency.measure_latency(classifier, [source]).images == 0


def test_latency_ends_after_some_seconds(few, model, monkeypatch):
    monkeypatch.setattr(latency, "_MAX_SECONDS", -1.0)
    assert run(few, model)[0].results[0].latency.images == 1


def test_large_photos_become_small_jpegs(model, tmp_path):
    from PIL import Image

    Image.effect_noise((900, 300), 80).save(tmp_path / "a.png")
    preprocess = onnx_file.read(model).spec.preprocess
    (source,) = EvalImages(tmp_path, "all", ("a",), ("0",), (str(tmp_path / "a.png"),), ()).sources([0])
    uri = thumbnails.thumbnail_uri(source, preprocess)
    assert uri.startswith("data:image/jpeg")
    assert len(uri) < 30_000


def test_the_bar_is_drawn_on_a_terminal_only(monkeypatch, capsys):
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((100, 24)))
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
        callbacks = TerminalCallbacks()
        callbacks.on_warning("careful")
        callbacks.on_start(2)
        callbacks.on_image()
        callbacks.clear()
        assert ("1 of 2 images" in capsys.readouterr().err) == is_terminal


def test_an_element_escapes_text_and_attributes_but_not_markup():
    assert element("p", "a < b", Markup("<i>c</i>"), title='"&"') == '<p title="&quot;&amp;&quot;">a &lt; b<i>c</i></p>'
    assert element("br") == "<br>"


def test_percentages_never_round_to_certainty():
    assert [format_percent(share, 1) for share in (0.9999, 1.0, 0.0001, 0.0)] == [
        ">99.9 %",
        "100.0 %",
        "<0.1 %",
        "0.0 %",
    ]
    assert format_p_value(0.0004) == "p < 0.001"
    assert format_interval((0.90049, 0.97301)) == "90.0 to 97.4 %"


def test_names_that_are_not_utf_8_appear_escaped_in_every_output(command, few, model, tmp_path):
    data = tmp_path / os.fsdecode(b"data\xff")
    shutil.move(few / "3", few / "old")
    shutil.move(few / "4", few / "3")  # so that there are mistakes, which are listed
    shutil.move(few, data)
    (data / "old").rename(data / "4")
    for image in list(data.rglob("*.png")):
        image.rename(image.with_name(os.fsdecode(b"\xfe") + image.name))
    done = command("clf-eval", model, "--data", data, "--html", "page.html")
    assert done.code == 0
    assert "data\\udcff/3/\\udcfe4-" in done.out
    assert "data\\udcff" in (tmp_path / "page.html").read_text()
    assert command("clf-eval", model, "--data", data, "-o", "table.txt").code == 0
    assert "data\\udcff/3/\\udcfe4-" in (tmp_path / "table.txt").read_text()
