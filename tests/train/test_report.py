"""report.html, rendered from small seeded predictions and read back with an HTML parser."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from clf_runtime.spec import Metrics, ModelSpec, Normalize, Preprocess, Provenance
from clf_train.data.cache import ArrayPixels
from clf_train.data.dataset import Int64Array
from clf_train.history import Epoch
from clf_train.report.analysis import Float32Array, RunResults
from clf_train.report.charts import format_percent
from clf_train.report.export_section import write_export_section
from clf_train.report.images import data_uri_from_pixels, spread_over_classes
from clf_train.report.rendering import environment, read_script
from clf_train.report.report import MAX_IMAGES, html_from_run

_VOID = frozenset(("meta", "img", "link", "base"))


@dataclass
class Element:
    """An element of the page."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None
    content: list[Element | str] = field(default_factory=list)

    @property
    def children(self) -> list[Element]:
        return [part for part in self.content if isinstance(part, Element)]

    @property
    def text(self) -> str:
        """All text inside; every run of white space, including no-break spaces, is one space."""
        parts = (part if isinstance(part, str) else part.text for part in self.content)
        return " ".join(" ".join(parts).split())

    def all(self, tag: str, class_: str = "") -> list[Element]:
        found = [self] if self.tag == tag and class_ in ["", *self.attributes.get("class", "").split()] else []
        return found + [element for child in self.children for element in child.all(tag, class_)]

    def section(self, heading: str) -> Element:
        return next(s for s in self.all("section") if s.attributes["aria-labelledby"] == heading)


class StrictParser(HTMLParser):
    """A strict parser: every element must be closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.here = Element("document", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.content.append(element)
        if tag not in _VOID:
            self.here = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.here.tag, f"</{tag}> closes <{self.here.tag}>"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.content.append(data)


def parse(html: str) -> Element:
    parser = StrictParser()
    parser.feed(html)
    parser.close()
    assert parser.here is parser.root, f"<{parser.here.tag}> is never closed"
    return parser.root


def make_spec(labels: tuple[str, ...], side: int = 8, color: str = "L") -> ModelSpec:
    channels = 1 if color == "L" else 3
    return ModelSpec(
        architecture="cnn-small",
        labels=labels,
        preprocess=Preprocess(color, side, side, "squash", 1.0, "bilinear", (0,) * channels),  # type: ignore[arg-type]
        normalize=Normalize((0.5,) * channels, (0.5,) * channels),
        temperature=1.083,
        metrics=Metrics("test", 360, 0.975, 0.0912, 0.0123),
        provenance=Provenance(
            data="digits",
            data_root=None,
            fingerprint="9f" * 32,
            test_split=0.2,
            seed=7,
            epochs=3,
            state_dict_sha256="ab" * 32,
            time="2025-06-01T12:34:56Z",
            command="clf-train --data digits",
            versions={"torch": "2.6.0"},
        ),
    )


def make_history(epochs: int, validation: bool = True) -> list[Epoch]:
    return [
        Epoch(
            epoch=number,
            learning_rate=0.001,
            train_loss=2 / number,
            train_accuracy=1 - 0.5 / number,
            validation_loss=1.8 / number if validation else None,
            validation_accuracy=0.9 if validation else None,
            seconds=1.5,
        )
        for number in range(1, epochs + 1)
    ]


def make_noise(count: int, side: int, channels: int) -> ArrayPixels:
    return ArrayPixels(np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8))


def make_probabilities(predicted: list[int], confidence: list[float], classes: int) -> Float32Array:
    """Return probabilities with these predictions and confidences; the other classes share the rest equally."""
    rest = (1 - np.array(confidence)) / (classes - 1)
    probabilities = np.repeat(rest[:, None], classes, axis=1)
    probabilities[np.arange(len(predicted)), predicted] = confidence
    return probabilities.astype(np.float32)


def make_predictions(count: int, classes: int) -> tuple[Int64Array, Float32Array]:
    """Return targets that contain all classes, and the probabilities of a mediocre model."""
    targets = np.arange(count) % classes
    logits = np.random.default_rng(0).normal(size=(count, classes))
    logits[np.arange(count), targets] += 2
    exponents = np.exp(logits)
    return targets, (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


def render(
    spec: ModelSpec,
    history: list[Epoch],
    pixels: ArrayPixels,
    targets: Int64Array,
    probabilities: Float32Array,
) -> str:
    return html_from_run(RunResults(spec, history, pixels, targets, probabilities))


def make_page(
    classes: int = 3, count: int = 60, side: int = 8, color: str = "L", epochs: int = 3, validation: bool = True
) -> str:
    targets, probabilities = make_predictions(count, classes)
    spec = make_spec(tuple(f"class {number}" for number in range(classes)), side, color)
    pixels = make_noise(count, side, spec.preprocess.channels)
    return render(spec, make_history(epochs, validation), pixels, targets, probabilities)


# Four images of cats, two of dogs, one of a bird. Mistakes at 0.7, 0.9, 0.8.
TARGETS = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTED = [0, 0, 1, 2, 1, 0, 2]
CONFIDENCE = [0.95, 0.95, 0.7, 0.9, 0.95, 0.8, 0.95]


@pytest.fixture(scope="module")
def small() -> Element:
    spec = make_spec(("cat", "dog", "bird"))
    return parse(
        render(spec, make_history(3), make_noise(7, 8, 1), TARGETS, make_probabilities(PREDICTED, CONFIDENCE, 3))
    )


@pytest.mark.parametrize("classes", [2, 10, 30, 41])
@pytest.mark.parametrize("epochs", [0, 1, 40])
@pytest.mark.parametrize("validation", [True, False])
def test_the_page_is_balanced_html_with_one_main_heading_for_any_classes_and_epochs(
    classes: int, epochs: int, validation: bool
) -> None:
    html = make_page(classes=classes, count=2 * classes, epochs=epochs, validation=validation)
    page = parse(html)
    assert html.startswith("<!doctype html>")
    assert len(page.all("h1")) == 1
    assert [html.attributes["lang"] for html in page.all("html")] == ["en"]
    assert all(image.attributes["alt"] for image in page.all("main")[0].all("img"))


def test_the_page_refers_to_no_other_file_and_no_network() -> None:
    html = make_page()
    page = parse(html)
    assert not [tag for tag in ("link", "iframe", "object", "base") if page.all(tag)]
    assert all(image.attributes["src"].startswith("data:image/") for image in page.all("main")[0].all("img"))
    assert not re.search(r"https?://|@import|url\(|srcset|\son[a-z]+=|fetch|XMLHttp|\.innerHTML", html)


def test_the_page_forbids_every_request() -> None:
    policies = [meta for meta in parse(make_page()).all("meta") if "http-equiv" in meta.attributes]
    assert [policy.attributes["content"].split(";")[0] for policy in policies] == ["default-src 'none'"]


def test_the_page_allows_its_own_script_by_digest_and_no_other() -> None:
    page = parse(make_page())
    (policy,) = [meta.attributes["content"] for meta in page.all("meta") if "http-equiv" in meta.attributes]
    (script,) = page.all("script")
    (text,) = script.content
    assert isinstance(text, str)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert re.findall(r"script-src ([^;]+)", policy) == [f"'sha256-{digest}'"]


def test_a_label_with_markup_is_shown_as_text() -> None:
    labels = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "plain")
    targets, probabilities = make_predictions(30, 3)
    spec = make_spec(labels)
    provenance = replace(spec.provenance, data="<b>data", command="<b>typed", versions={"<b>": "<b>"})  # type: ignore[type-var]
    html = render(
        replace(spec, architecture="<b>net", provenance=provenance),
        make_history(1),
        make_noise(30, 8, 1),
        targets,
        probabilities,
    )
    page = parse(html)
    assert html.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert [script.content for script in page.all("script")] == [[read_script("zoom.js")]]
    assert all(image.attributes["src"].startswith("data:image/") for image in page.all("main")[0].all("img"))
    assert page.all("h1")[0].text == "<b>net on <b>data"
    assert "<b>typed" in page.section("provenance").text


def test_the_header_shows_the_metrics_of_the_spec_and_of_the_training(small: Element) -> None:
    figures = {figure.all("dt")[0].text: figure.all("dd", "value")[0].text for figure in small.all("dl")[0].children}
    assert figures == {
        "Accuracy": "97.5 %",
        "Test images": "360",
        "Loss": "0.0912",
        "Calibration error": "1.2 %",
        "Temperature": "1.08",
        "Classes": "3",
        "Epochs": "3",
        "Training time": "4.5 s",
        "Input": "8 × 8",  # noqa: RUF001
    }
    assert "split: test" in small.all("dl")[0].text


def test_without_metrics_and_provenance_the_page_shows_the_accuracy_of_the_predictions() -> None:
    spec = replace(make_spec(("cat", "dog", "bird")), metrics=None, provenance=None)
    page = parse(render(spec, [], make_noise(7, 8, 1), TARGETS, make_probabilities(PREDICTED, CONFIDENCE, 3)))
    assert "4 of 7 correct" in page.all("dl")[0].text
    assert page.all("h1")[0].text == "cnn-small"
    assert "no record" in page.section("provenance").text
    assert "No epoch was trained" in page.section("curves").text


def test_the_provenance_says_which_folder_is_which_split() -> None:
    spec = make_spec(("cat", "dog", "bird"))
    provenance = replace(spec.provenance, splits={"train": "training", "test": "val <b>"})  # type: ignore[type-var]
    spec = replace(spec, provenance=provenance)
    page = parse(render(spec, [], make_noise(7, 8, 1), TARGETS, make_probabilities(PREDICTED, CONFIDENCE, 3)))
    facts = {row.all("th")[0].text: row.all("td")[0].text for row in page.section("provenance").all("tr")}
    assert facts["Training split"] == "training; fits the weights"
    assert facts["Validation split"].startswith("chosen by the seed; ")
    assert facts["Test split"].startswith("val <b>; ")


def test_the_title_has_the_name_of_the_data_folder_and_the_provenance_its_path() -> None:
    spec = make_spec(("cat", "dog", "bird"))
    spec = replace(spec, provenance=replace(spec.provenance, data="/home/me/flowers/"))  # type: ignore[type-var]
    page = parse(render(spec, [], make_noise(7, 8, 1), TARGETS, make_probabilities(PREDICTED, CONFIDENCE, 3)))
    assert page.all("title")[0].text == "cnn-small on flowers: training report"
    assert "/home/me/flowers/" in page.section("provenance").text


def test_the_curves_show_training_and_validation_with_every_value(small: Element) -> None:
    loss, accuracy = small.section("curves").all("figure")
    assert "training 0.6667" in loss.text
    assert "validation 0.6000" in loss.text
    assert loss.all("title")[0].text == "epoch 1: training 2.0000, validation 1.8000"
    for chart in (loss, accuracy):
        for line in chart.all("polyline"):
            assert len(line.attributes["points"].split()) == 3


def test_without_a_validation_split_there_is_one_curve_and_the_reason() -> None:
    curves = parse(make_page(validation=False)).section("curves")
    assert [len(chart.all("polyline")) for chart in curves.all("figure")] == [1, 1]
    assert "too few images for a validation split" in curves.text


def test_diverged_training_still_has_curves() -> None:
    history = [Epoch(1, 0.1, 2.0, 0.1, float("nan"), 0.1, 1), Epoch(2, 0.1, float("inf"), 0.1, float("nan"), 0.1, 1)]
    targets, probabilities = make_predictions(30, 3)
    html = render(make_spec(("a", "b", "c")), history, make_noise(30, 8, 1), targets, probabilities)
    training, validation = parse(html).section("curves").all("figure")[0].all("polyline")
    assert len(training.attributes["points"].split()) == 1
    assert validation.attributes["points"] == ""


def test_a_model_with_nan_probabilities_still_has_a_page() -> None:
    probabilities = np.full((30, 3), np.nan, dtype=np.float32)
    page = parse(render(make_spec(("a", "b", "c")), [], make_noise(30, 8, 1), np.arange(30) % 3, probabilities))
    assert "confidence 0 to 7 %: 30 images" in page.section("reliability").text


@pytest.mark.parametrize("value", [0.0, 0.003, 1.0])
def test_flat_curves_stay_inside_their_charts(value: float) -> None:
    targets, probabilities = make_predictions(30, 3)
    history = [Epoch(number, 0.1, value, value, value, value, 1) for number in (1, 2)]
    html = render(make_spec(("a", "b", "c")), history, make_noise(30, 8, 1), targets, probabilities)
    for chart in parse(html).section("curves").all("figure"):
        rules = [float(rule.attributes["y1"]) for rule in chart.all("line", "rule")]
        heights = [float(dot.attributes["cy"]) for dot in chart.all("circle")]
        assert len(rules) >= 2
        assert min(rules) <= min(heights) <= max(heights) <= max(rules)


def test_precision_recall_and_f1_of_each_class_are_listed_worst_first_with_their_counts(small: Element) -> None:
    rows = [row.text for row in small.section("classes").all("tbody")[0].all("tr")]
    assert rows == [
        "dog 50.0 % 50.0 % 1 of 2 50.0 % 1 of 2",
        "cat 57.1 % 66.7 % 2 of 3 50.0 % 2 of 4",
        "bird 66.7 % 50.0 % 1 of 2 100.0 % 1 of 1",
    ]


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    page = parse(
        render(
            make_spec(("a", "b")), [], make_noise(2, 8, 1), np.array([0, 1]), make_probabilities([0, 0], [0.9, 0.9], 2)
        )
    )
    assert [row.text for row in page.section("classes").all("tbody")[0].all("tr")] == [
        "b 0.0 % \u2013 0.0 % 0 of 1",
        "a 66.7 % 50.0 % 1 of 2 100.0 % 1 of 1",
    ]


def test_the_thirty_worst_of_many_classes_are_listed_and_the_others_on_request() -> None:
    section = parse(make_page(classes=31, count=62)).section("classes")
    assert [len(table.all("tr")) for table in section.all("tbody")] == [30, 1]
    assert "The 30 worst of 31 classes" in section.text
    assert "The next 1 classes" not in section.text


def test_a_class_without_a_test_image_is_left_out_and_the_page_says_so() -> None:
    spec = make_spec(("cat", "dog", "bird", "fish"))
    page = parse(render(spec, [], make_noise(7, 8, 1), TARGETS, make_probabilities(PREDICTED, CONFIDENCE, 4)))
    assert len(page.section("classes").all("tbody")[0].all("tr")) == 3
    assert "1 of the 4 classes have no test image" in page.section("classes").text
    assert [cell.text for cell in page.section("confusion").all("tr")[-1].all("td")] == ["0", "0", "0", "0"]


def test_the_confusion_matrix_has_true_rows_and_predicted_columns(small: Element) -> None:
    rows = small.section("confusion").all("tbody")[0].all("tr")
    assert {row.all("th")[0].text: [int(cell.text) for cell in row.all("td")] for row in rows} == {
        "cat": [2, 1, 1],
        "dog": [1, 1, 0],
        "bird": [0, 0, 1],
    }


@pytest.mark.parametrize("classes", [20, 21, 40])
def test_a_confusion_matrix_counts_every_image_once(classes: int) -> None:
    section = parse(make_page(classes=classes, count=3 * classes)).section("confusion")
    cells = [cell for row in section.all("tbody")[0].all("tr") for cell in row.all("td")]
    counted = [int(cell.attributes["title"].split(": ")[1].split()[0]) for cell in cells if "title" in cell.attributes]
    assert len(cells) == classes**2
    assert sum(counted) == 3 * classes
    assert any(cell.text for cell in cells) == (classes <= 20)


def test_more_than_forty_classes_have_a_table_of_the_most_frequent_confusions() -> None:
    targets = np.array([0] * 5 + [1] * 4 + [2])
    predicted = [40] * 3 + [0] * 2 + [3] * 4 + [2]
    labels = tuple(f"class {number}" for number in range(41))
    spec = make_spec(labels)
    section = parse(
        render(spec, [], make_noise(10, 8, 1), targets, make_probabilities(predicted, [0.9] * 10, 41))
    ).section("confusion")
    rows = [[cell.text for cell in row.all("td")] for row in section.all("tr")[1:]]
    assert rows == [["class 1", "class 3", "4", "100.0 %"], ["class 0", "class 40", "3", "60.0 %"]]
    assert "A matrix of 41 classes would be too large to read" in section.text


def test_the_table_has_at_most_thirty_confusions() -> None:
    section = parse(make_page(classes=50, count=500)).section("confusion")
    counts = [int(row.all("td")[2].text) for row in section.all("tr")[1:]]
    assert len(counts) == 30
    assert counts == sorted(counts, reverse=True)


def test_many_classes_without_a_confusion_have_a_sentence_instead_of_a_table() -> None:
    targets = np.arange(41)
    spec = make_spec(tuple(f"class {number}" for number in range(41)))
    page = parse(render(spec, [], make_noise(41, 8, 1), targets, make_probabilities(targets.tolist(), [0.9] * 41, 41)))
    assert "There are no confusions." in page.section("confusion").text


def test_more_than_color_marks_a_prediction_as_correct_or_wrong(small: Element) -> None:
    captions = [image.text for image in small.section("images").all("figure")]
    assert sorted(captions) == sorted(
        ["cat ✓ 95.0 %"] * 2
        + [
            "dog ✗ 70.0 % true: cat",
            "bird ✗ 90.0 % true: cat",
            "dog ✓ 95.0 %",
            "cat ✗ 80.0 % true: dog",
            "bird ✓ 95.0 %",
        ]
    )


def test_forty_images_are_shown_with_equally_many_of_each_class() -> None:
    images = parse(make_page(classes=4, count=200)).section("images").all("img")
    labels = [image.attributes["alt"].removeprefix("A test image of ") for image in images]
    assert labels == [f"class {number}" for number in range(4) for _ in range(10)]


def test_the_shown_images_are_spread_over_each_class_and_always_the_same() -> None:
    targets = np.repeat([0, 1, 2], [100, 3, 100])
    chosen = spread_over_classes(targets, 11)
    assert chosen == spread_over_classes(targets, 11)
    assert np.bincount(targets[chosen]).tolist() == [4, 3, 4]
    assert chosen == [12, 37, 62, 87, 100, 101, 102, 115, 140, 165, 190]


def test_with_more_classes_than_images_no_class_is_shown_twice() -> None:
    chosen = spread_over_classes(np.arange(300) % 100, MAX_IMAGES)
    assert len({index % 100 for index in chosen}) == MAX_IMAGES


def test_a_few_images_are_all_shown() -> None:
    assert sorted(spread_over_classes(np.array([1, 0, 1]), 40)) == [0, 1, 2]


def test_mistakes_are_sorted_by_probability(small: Element) -> None:
    mistakes = [mistake.text for mistake in small.section("mistakes").all("figure")]
    assert mistakes == ["bird ✗ 90.0 % true: cat", "cat ✗ 80.0 % true: dog", "dog ✗ 70.0 % true: cat"]
    assert "All 3 mistakes." in small.section("mistakes").text


def test_only_the_twenty_most_confident_of_many_mistakes_are_shown() -> None:
    targets, probabilities = make_predictions(300, 10)
    html = render(make_spec(tuple("abcdefghij")), [], make_noise(300, 8, 1), targets, probabilities)
    wrong = probabilities.argmax(axis=1) != targets
    expected = [format_percent(float(value)) for value in sorted(probabilities.max(axis=1)[wrong], reverse=True)[:20]]
    section = parse(html).section("mistakes")
    texts = [number.text for number in section.all("span", "number")]
    assert texts == [f"✗ {text}".replace("\u00a0", " ") for text in expected]
    assert f"The 20 most confident of {int(wrong.sum())} mistakes; images.html shows all of them." in section.text


def test_a_model_without_mistakes_has_a_sentence_instead_of_images() -> None:
    targets = np.arange(12) % 3
    probabilities = make_probabilities(targets.tolist(), [0.9] * 12, 3)
    html = render(make_spec(("a", "b", "c")), make_history(1), make_noise(12, 8, 1), targets, probabilities)
    section = parse(html).section("mistakes")
    assert "There are none: every test image is predicted correctly." in section.text
    assert not section.all("img")


def test_the_reliability_diagram_counts_every_image_in_the_bin_of_its_confidence(small: Element) -> None:
    bins = [title.text for title in small.section("reliability").all("title")]
    assert [text.replace("\u00a0", " ") for text in bins] == [
        "confidence 67 to 73 %: 1 image, accuracy 0.0 %, mean confidence 70.0 %",
        "confidence 80 to 87 %: 1 image, accuracy 0.0 %, mean confidence 80.0 %",
        "confidence 87 to 93 %: 1 image, accuracy 0.0 %, mean confidence 90.0 %",
        "confidence 93 to 100 %: 4 images, accuracy 100.0 %, mean confidence 95.0 %",
    ]


def test_the_page_shows_the_provenance_and_the_next_steps(small: Element) -> None:
    facts = {row.all("th")[0].text: row.all("td")[0].text for row in small.section("provenance").all("tr")}
    assert facts["Data fingerprint"] == "9f" * 32
    assert facts["Share of the test split"].replace("\u00a0", " ") == "20.0 %"
    assert facts["Training split"] == "chosen by the seed; fits the weights"
    assert facts["Seed"] == "7"
    assert facts["Command"] == "clf-train --data digits"
    assert facts["Versions"].split() == ["torch", "2.6.0"]
    assert [command.text for command in small.section("next").all("code")] == [
        "clf-export --format onnx",
        "clf-run IMAGE",
    ]


@pytest.mark.parametrize("side", [32, 33, 96, 224])
def test_the_page_stays_below_1_5_mb_even_with_noise(side: int) -> None:
    html = make_page(classes=40, count=80, side=side, color="RGB", epochs=300)
    assert len(parse(html).all("main")[0].all("img")) == MAX_IMAGES + 20
    assert len(html.encode()) < 1_500_000


def test_very_long_labels_are_shortened_and_do_not_bloat_the_page() -> None:
    targets, probabilities = make_predictions(80, 40)
    labels = tuple(f"{number} " + "&" * 10_000 for number in range(40))
    html = render(make_spec(labels, 96, "RGB"), make_history(300), make_noise(80, 96, 3), targets, probabilities)
    assert len(html.encode()) < 1_500_000
    assert "…" in html


@pytest.mark.parametrize(
    ("side", "channels", "kind"), [(8, 1, "png"), (32, 3, "png"), (224, 1, "jpeg"), (96, 3, "jpeg")]
)
def test_a_small_image_stays_lossless_and_a_large_one_becomes_a_jpeg(side: int, channels: int, kind: str) -> None:
    assert data_uri_from_pixels(make_noise(1, side, channels)[0]).startswith(f"data:image/{kind};base64,")


@pytest.mark.parametrize(("side", "pixelated"), [(8, True), (28, True), (224, False)])
def test_a_small_image_is_enlarged_with_visible_pixels(side: int, pixelated: bool) -> None:
    grids = parse(make_page(side=side)).all("div", "images")[:2]
    assert [("pixelated" in grid.attributes["class"].split()) for grid in grids] == [pixelated] * 2


def test_the_same_run_always_has_the_same_page() -> None:
    assert make_page() == make_page()


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (0.0001, "<0.1 %"), (0.5, "50.0 %"), (0.9994, "99.9 %"), (0.99999, ">99.9 %"), (1, "100.0 %")],
)
def test_only_exact_percentages_read_0_or_100(share: float, text: str) -> None:
    assert format_percent(share).replace("\u00a0", " ") == text


@pytest.mark.parametrize(("seconds", "text"), [(4.21, "4.2 s"), (192, "3 min 12 s"), (3900, "1 h 05 min")])
def test_durations_do_not_break_across_lines(seconds: float, text: str) -> None:
    template = environment().from_string("{{ seconds | duration }}")
    assert template.render(seconds=seconds) == text.replace(" ", "\u00a0")


def test_the_export_section_is_inserted_into_the_report_and_replaced(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(make_page(), encoding="utf-8")
    before = parse(report.read_text(encoding="utf-8"))
    for text in (r"first \1 \g(0)", "second, with an é"):
        write_export_section(tmp_path, f'<section aria-labelledby="exported">{text}</section>')
        page = parse(report.read_text(encoding="utf-8"))
        assert page.section("exported").text == text
        assert len(page.all("section")) == len(before.all("section")) + 1
        assert page.section("images").text == before.section("images").text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("existing", [None, b"<p>of another program</p>", b"\xff\xfe"])
def test_without_a_report_of_a_training_the_page_has_only_the_export_section(
    tmp_path: Path, existing: bytes | None
) -> None:
    if existing is not None:
        (tmp_path / "report.html").write_bytes(existing)
    write_export_section(tmp_path, '<section aria-labelledby="exported">files</section>')
    page = parse((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [section.text for section in page.all("section")] == ["files"]
    assert page.all("h1")[0].text == "Exported files"
