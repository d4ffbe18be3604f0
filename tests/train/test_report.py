"""report.html, rendered for real from small seeded answers and read back with an HTML parser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from clf_runtime.spec import Metrics, ModelSpec, Normalize, Preprocess, Provenance
from clf_train.data.cache import ArrayPixels
from clf_train.data.dataset import Int64Array
from clf_train.history import Epoch, duration
from clf_train.report.analysis import Float32Array
from clf_train.report.charts import percent
from clf_train.report.report import MOST_IMAGES, data_uri, html_from_run, spread

_VOID = frozenset(("meta", "img", "link", "base"))


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None
    content: list[Element | str] = field(default_factory=list)

    @property
    def children(self) -> list[Element]:
        return [part for part in self.content if isinstance(part, Element)]

    @property
    def text(self) -> str:
        """All text inside, with every run of white space, no-break spaces too, as one space."""
        parts = (part if isinstance(part, str) else part.text for part in self.content)
        return " ".join(" ".join(parts).split())

    def all(self, tag: str, class_: str = "") -> list[Element]:
        found = [self] if self.tag == tag and class_ in ["", *self.attributes.get("class", "").split()] else []
        return found + [element for child in self.children for element in child.all(tag, class_)]

    def section(self, heading: str) -> Element:
        return next(s for s in self.all("section") if s.attributes["aria-labelledby"] == heading)


class Reader(HTMLParser):
    """A strict reader: whatever is opened must be closed, in order."""

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


def read(html: str) -> Element:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.here is reader.root, f"<{reader.here.tag}> is never closed"
    return reader.root


def a_spec(labels: tuple[str, ...], side: int = 8, color: str = "L") -> ModelSpec:
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


def a_history(epochs: int, validation: bool = True) -> list[Epoch]:
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


def noise(count: int, side: int, channels: int) -> ArrayPixels:
    return ArrayPixels(np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8))


def sure(predicted: list[int], confidence: list[float], classes: int) -> Float32Array:
    """Give probabilities whose largest are as asked; the rest is shared by the other classes."""
    rest = (1 - np.array(confidence)) / (classes - 1)
    probabilities = np.repeat(rest[:, None], classes, axis=1)
    probabilities[np.arange(len(predicted)), predicted] = confidence
    return probabilities.astype(np.float32)


def guesses(count: int, classes: int) -> tuple[Int64Array, Float32Array]:
    """Give targets, all classes among them, and the probabilities of a mediocre model."""
    targets = np.arange(count) % classes
    logits = np.random.default_rng(0).normal(size=(count, classes))
    logits[np.arange(count), targets] += 2
    exponents = np.exp(logits)
    return targets, (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


def a_page(
    classes: int = 3, count: int = 60, side: int = 8, color: str = "L", epochs: int = 3, validation: bool = True
) -> str:
    targets, probabilities = guesses(count, classes)
    spec = a_spec(tuple(f"class {number}" for number in range(classes)), side, color)
    pixels = noise(count, side, spec.preprocess.channels)
    return html_from_run(spec, a_history(epochs, validation), pixels, targets, probabilities)


# Four images of cats, two of dogs, one of a bird. Mistakes at 0.7, 0.9, 0.8.
TARGETS = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTED = [0, 0, 1, 2, 1, 0, 2]
CONFIDENCE = [0.95, 0.95, 0.7, 0.9, 0.95, 0.8, 0.95]


@pytest.fixture(scope="module")
def small() -> Element:
    spec = a_spec(("cat", "dog", "bird"))
    return read(html_from_run(spec, a_history(3), noise(7, 8, 1), TARGETS, sure(PREDICTED, CONFIDENCE, 3)))


@pytest.mark.parametrize("classes", [2, 10, 30, 41])
@pytest.mark.parametrize("epochs", [0, 1, 40])
@pytest.mark.parametrize("validation", [True, False])
def test_the_page_is_balanced_html_with_one_heading_for_any_classes_and_epochs(
    classes: int, epochs: int, validation: bool
) -> None:
    html = a_page(classes=classes, count=2 * classes, epochs=epochs, validation=validation)
    page = read(html)
    assert html.startswith("<!doctype html>")
    assert len(page.all("h1")) == 1
    assert [html.attributes["lang"] for html in page.all("html")] == ["en"]
    assert all(image.attributes["alt"] for image in page.all("img"))


def test_the_page_names_nothing_outside_itself() -> None:
    html = a_page()
    page = read(html)
    assert not [tag for tag in ("script", "link", "iframe", "object", "base") if page.all(tag)]
    assert all(image.attributes["src"].startswith("data:image/") for image in page.all("img"))
    assert not re.search(r"https?://|@import|url\(|srcset|\son[a-z]+=", html)


def test_the_page_forbids_the_browser_to_load_anything() -> None:
    policies = [meta for meta in read(a_page()).all("meta") if "http-equiv" in meta.attributes]
    assert [policy.attributes["content"].split(";")[0] for policy in policies] == ["default-src 'none'"]


def test_a_label_with_markup_is_shown_as_text() -> None:
    labels = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "plain")
    targets, probabilities = guesses(30, 3)
    spec = a_spec(labels)
    provenance = replace(spec.provenance, data="<b>data", command="<b>typed", versions={"<b>": "<b>"})  # type: ignore[type-var]
    html = html_from_run(
        replace(spec, architecture="<b>net", provenance=provenance),
        a_history(1),
        noise(30, 8, 1),
        targets,
        probabilities,
    )
    page = read(html)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not page.all("script")
    assert all(image.attributes["src"].startswith("data:image/") for image in page.all("img"))
    assert page.all("h1")[0].text == "<b>net on <b>data"
    assert "<b>typed" in page.section("provenance").text


def test_the_headline_gives_the_figures_of_the_spec_and_of_the_training(small: Element) -> None:
    figures = {figure.all("dt")[0].text: figure.all("dd", "value")[0].text for figure in small.all("dl")[0].children}
    assert figures == {
        "Accuracy": "97.5 %",
        "Images": "360",
        "Loss": "0.0912",
        "Calibration error": "1.2 %",
        "Temperature": "1.08",
        "Classes": "3",
        "Epochs": "3",
        "Training time": "4.5 s",
        "Input": "8 × 8",  # noqa: RUF001
    }
    assert "split: test" in small.all("dl")[0].text


def test_a_model_without_metrics_and_provenance_gets_a_page_with_the_accuracy_counted() -> None:
    spec = replace(a_spec(("cat", "dog", "bird")), metrics=None, provenance=None)
    page = read(html_from_run(spec, [], noise(7, 8, 1), TARGETS, sure(PREDICTED, CONFIDENCE, 3)))
    assert "4 of 7 right" in page.all("dl")[0].text
    assert page.all("h1")[0].text == "cnn-small"
    assert "no record" in page.section("provenance").text
    assert "No epoch was trained" in page.section("curves").text


def test_a_folder_gives_the_title_its_name_and_the_provenance_its_path() -> None:
    spec = a_spec(("cat", "dog", "bird"))
    spec = replace(spec, provenance=replace(spec.provenance, data="/home/me/flowers/"))  # type: ignore[type-var]
    page = read(html_from_run(spec, [], noise(7, 8, 1), TARGETS, sure(PREDICTED, CONFIDENCE, 3)))
    assert page.all("title")[0].text == "cnn-small on flowers: training report"
    assert "/home/me/flowers/" in page.section("provenance").text


def test_the_curves_show_training_against_validation_with_every_value_to_read(small: Element) -> None:
    loss, accuracy = small.section("curves").all("figure")
    assert "training 0.6667" in loss.text
    assert "validation 0.6000" in loss.text
    assert loss.all("title")[0].text == "epoch 1: training 2.0000, validation 1.8000"
    for chart in (loss, accuracy):
        for line in chart.all("polyline"):
            assert len(line.attributes["points"].split()) == 3


def test_without_a_validation_split_there_is_one_curve_and_the_reason() -> None:
    curves = read(a_page(validation=False)).section("curves")
    assert [len(chart.all("polyline")) for chart in curves.all("figure")] == [1, 1]
    assert "too few images for a validation split" in curves.text


def test_a_training_that_diverged_still_gets_its_curves() -> None:
    history = [Epoch(1, 0.1, 2.0, 0.1, float("nan"), 0.1, 1), Epoch(2, 0.1, float("inf"), 0.1, float("nan"), 0.1, 1)]
    targets, probabilities = guesses(30, 3)
    html = html_from_run(a_spec(("a", "b", "c")), history, noise(30, 8, 1), targets, probabilities)
    training, validation = read(html).section("curves").all("figure")[0].all("polyline")
    assert len(training.attributes["points"].split()) == 1
    assert validation.attributes["points"] == ""


def test_a_model_whose_answers_are_not_numbers_still_gets_a_page() -> None:
    probabilities = np.full((30, 3), np.nan, dtype=np.float32)
    page = read(html_from_run(a_spec(("a", "b", "c")), [], noise(30, 8, 1), np.arange(30) % 3, probabilities))
    assert "confidence 0 to 7 %: 30 images" in page.section("reliability").text


@pytest.mark.parametrize("value", [0.0, 0.003, 1.0])
def test_curves_that_do_not_move_stay_inside_their_charts(value: float) -> None:
    targets, probabilities = guesses(30, 3)
    history = [Epoch(number, 0.1, value, value, value, value, 1) for number in (1, 2)]
    html = html_from_run(a_spec(("a", "b", "c")), history, noise(30, 8, 1), targets, probabilities)
    for chart in read(html).section("curves").all("figure"):
        rules = [float(rule.attributes["y1"]) for rule in chart.all("line", "rule")]
        heights = [float(dot.attributes["cy"]) for dot in chart.all("circle")]
        assert len(rules) >= 2
        assert min(rules) <= min(heights) <= max(heights) <= max(rules)


def test_classes_are_listed_worst_first_with_their_counts(small: Element) -> None:
    bars = [bar.text for bar in small.section("classes").all("li")]
    assert bars == ["cat 50.0 % 2 of 4", "dog 50.0 % 1 of 2", "bird 100.0 % 1 of 1"]


def test_of_many_classes_the_thirty_worst_are_listed_and_the_page_says_so() -> None:
    section = read(a_page(classes=31, count=62)).section("classes")
    assert len(section.all("li")) == 30
    assert "The 30 worst of 31 classes" in section.text


def test_a_class_without_a_held_out_image_is_left_out_and_the_page_says_so() -> None:
    spec = a_spec(("cat", "dog", "bird", "fish"))
    page = read(html_from_run(spec, [], noise(7, 8, 1), TARGETS, sure(PREDICTED, CONFIDENCE, 4)))
    assert len(page.section("classes").all("li")) == 3
    assert "1 of the 4 classes have no held-out image" in page.section("classes").text
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
    section = read(a_page(classes=classes, count=3 * classes)).section("confusion")
    cells = [cell for row in section.all("tbody")[0].all("tr") for cell in row.all("td")]
    counted = [int(cell.attributes["title"].split(": ")[1].split()[0]) for cell in cells if "title" in cell.attributes]
    assert len(cells) == classes**2
    assert sum(counted) == 3 * classes
    assert any(cell.text for cell in cells) == (classes <= 20)


def test_more_than_forty_classes_get_a_table_of_their_most_frequent_confusions() -> None:
    targets = np.array([0] * 5 + [1] * 4 + [2])
    predicted = [40] * 3 + [0] * 2 + [3] * 4 + [2]
    labels = tuple(f"class {number}" for number in range(41))
    spec = a_spec(labels)
    section = read(html_from_run(spec, [], noise(10, 8, 1), targets, sure(predicted, [0.9] * 10, 41))).section(
        "confusion"
    )
    rows = [[cell.text for cell in row.all("td")] for row in section.all("tr")[1:]]
    assert rows == [["class 1", "class 3", "4", "100.0 %"], ["class 0", "class 40", "3", "60.0 %"]]
    assert "A matrix of 41 classes would be too large to read" in section.text


def test_many_confusions_are_cut_to_thirty() -> None:
    section = read(a_page(classes=50, count=500)).section("confusion")
    counts = [int(row.all("td")[2].text) for row in section.all("tr")[1:]]
    assert len(counts) == 30
    assert counts == sorted(counts, reverse=True)


def test_many_classes_without_a_confusion_are_told_so() -> None:
    targets = np.arange(41)
    spec = a_spec(tuple(f"class {number}" for number in range(41)))
    page = read(html_from_run(spec, [], noise(41, 8, 1), targets, sure(targets.tolist(), [0.9] * 41, 41)))
    assert "No class was taken for another." in page.section("confusion").text


def test_an_answer_is_marked_right_or_wrong_by_more_than_colour(small: Element) -> None:
    captions = [image.text for image in small.section("images").all("figure")]
    assert sorted(captions) == sorted(
        ["cat ✓ 95.0 %"] * 2
        + ["dog ✗ 70.0 % is cat", "bird ✗ 90.0 % is cat", "dog ✓ 95.0 %", "cat ✗ 80.0 % is dog", "bird ✓ 95.0 %"]
    )


def test_forty_images_are_shown_as_many_of_each_class() -> None:
    images = read(a_page(classes=4, count=200)).section("images").all("img")
    shown = [image.attributes["alt"].removeprefix("A held-out image of ") for image in images]
    assert shown == [f"class {number}" for number in range(4) for _ in range(10)]


def test_images_are_chosen_from_all_over_each_class_and_always_the_same() -> None:
    targets = np.repeat([0, 1, 2], [100, 3, 100])
    chosen = spread(targets, 11)
    assert chosen == spread(targets, 11)
    assert np.bincount(targets[chosen]).tolist() == [4, 3, 4]
    assert chosen == [12, 37, 62, 87, 100, 101, 102, 115, 140, 165, 190]


def test_of_more_classes_than_images_every_image_is_of_another_class() -> None:
    chosen = spread(np.arange(300) % 100, MOST_IMAGES)
    assert len({index % 100 for index in chosen}) == MOST_IMAGES


def test_fewer_images_than_asked_for_are_all_shown() -> None:
    assert sorted(spread(np.array([1, 0, 1]), 40)) == [0, 1, 2]


def test_mistakes_are_ordered_by_probability(small: Element) -> None:
    mistakes = [mistake.text for mistake in small.section("mistakes").all("figure")]
    assert mistakes == ["bird ✗ 90.0 % is cat", "cat ✗ 80.0 % is dog", "dog ✗ 70.0 % is cat"]
    assert "All 3 mistakes." in small.section("mistakes").text


def test_of_many_mistakes_the_twenty_most_confident_are_shown() -> None:
    targets, probabilities = guesses(300, 10)
    html = html_from_run(a_spec(tuple("abcdefghij")), [], noise(300, 8, 1), targets, probabilities)
    wrong = probabilities.argmax(axis=1) != targets
    expected = [percent(float(value)) for value in sorted(probabilities.max(axis=1)[wrong], reverse=True)[:20]]
    section = read(html).section("mistakes")
    shown = [number.text for number in section.all("span", "number")]
    assert shown == [f"✗ {text}".replace("\u00a0", " ") for text in expected]
    assert f"The 20 most confident of {int(wrong.sum())} mistakes." in section.text


def test_a_model_without_mistakes_gets_a_friendly_sentence() -> None:
    targets = np.arange(12) % 3
    html = html_from_run(
        a_spec(("a", "b", "c")), a_history(1), noise(12, 8, 1), targets, sure(targets.tolist(), [0.9] * 12, 3)
    )
    section = read(html).section("mistakes")
    assert "There are none: every held-out image got the right answer." in section.text
    assert not section.all("img")


def test_the_reliability_diagram_counts_every_image_in_the_bin_of_its_confidence(small: Element) -> None:
    bins = [title.text for title in small.section("reliability").all("title")]
    assert [text.replace("\u00a0", " ") for text in bins] == [
        "confidence 67 to 73 %: 1 image, accuracy 0.0 %, mean confidence 70.0 %",
        "confidence 80 to 87 %: 1 image, accuracy 0.0 %, mean confidence 80.0 %",
        "confidence 87 to 93 %: 1 image, accuracy 0.0 %, mean confidence 90.0 %",
        "confidence 93 to 100 %: 4 images, accuracy 100.0 %, mean confidence 95.0 %",
    ]


def test_the_page_says_where_the_model_comes_from_and_what_to_do_next(small: Element) -> None:
    facts = {row.all("th")[0].text: row.all("td")[0].text for row in small.section("provenance").all("tr")}
    assert facts["Data fingerprint"] == "9f" * 32
    assert facts["Seed"] == "7"
    assert facts["Command"] == "clf-train --data digits"
    assert facts["Versions"].split() == ["torch", "2.6.0"]
    assert [command.text for command in small.section("next").all("code")] == [
        "clf-export --format onnx",
        "clf-run IMAGE",
    ]


@pytest.mark.parametrize("side", [32, 33, 96, 224])
def test_the_page_stays_below_a_megabyte_and_a_half_for_the_noisiest_images(side: int) -> None:
    html = a_page(classes=40, count=80, side=side, color="RGB", epochs=300)
    assert len(read(html).all("img")) == MOST_IMAGES + 20
    assert len(html.encode()) < 1_500_000


def test_labels_as_long_as_a_book_neither_bloat_the_page_nor_appear_whole() -> None:
    targets, probabilities = guesses(80, 40)
    labels = tuple(f"{number} " + "&" * 10_000 for number in range(40))
    html = html_from_run(a_spec(labels, 96, "RGB"), a_history(300), noise(80, 96, 3), targets, probabilities)
    assert len(html.encode()) < 1_500_000
    assert "…" in html


@pytest.mark.parametrize(
    ("side", "channels", "kind"), [(8, 1, "png"), (32, 3, "png"), (224, 1, "jpeg"), (96, 3, "jpeg")]
)
def test_a_small_image_keeps_its_every_pixel_and_a_large_one_becomes_a_jpeg(
    side: int, channels: int, kind: str
) -> None:
    assert data_uri(noise(1, side, channels)[0]).startswith(f"data:image/{kind};base64,")


@pytest.mark.parametrize(("side", "pixelated"), [(8, True), (28, True), (224, False)])
def test_a_small_image_is_enlarged_with_its_pixels_visible(side: int, pixelated: bool) -> None:
    grids = read(a_page(side=side)).all("div", "images")
    assert [("pixelated" in grid.attributes["class"].split()) for grid in grids] == [pixelated] * 2


def test_the_same_run_gives_the_same_page() -> None:
    assert a_page() == a_page()


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (0.0001, "<0.1 %"), (0.5, "50.0 %"), (0.9994, "99.9 %"), (0.99999, ">99.9 %"), (1, "100.0 %")],
)
def test_a_percentage_reads_0_or_100_only_where_it_is(share: float, text: str) -> None:
    assert percent(share).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (42.4, "42 s"), (59.7, "1 min 00 s"), (192, "3 min 12 s"), (3900, "1 h 05 min")],
)
def test_a_time_reads_as_a_person_would_say_it(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text
