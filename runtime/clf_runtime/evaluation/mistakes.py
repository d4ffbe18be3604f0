"""The mistakes of a model on the page: the first ones as images, the others as a list."""

from __future__ import annotations

from clf_runtime.evaluation.figures import MAX_LABEL_LENGTH, draw_path, draw_table
from clf_runtime.evaluation.formatting import format_images, format_percent, one_line, shorten
from clf_runtime.evaluation.markup import Markup, element, join
from clf_runtime.evaluation.metrics import rank_mistakes
from clf_runtime.evaluation.results import Evaluation, ModelResult
from clf_runtime.evaluation.thumbnails import thumbnail_uri

_MAX_THUMBNAILS = 60  # of photos; they take 0.6 MB


def draw_mistakes(result: ModelResult, evaluation: Evaluation) -> Markup:
    """Return the wrong predictions, the most confident first. Images are read again."""
    mistakes = rank_mistakes(result.scored)
    if not mistakes:
        return element("p", "There are none.", class_="note")
    parts = [
        element("p", f"{format_images(len(mistakes))}, the most confident first.", class_="note"),
        element(
            "div", *(_draw_mistake(result, row, evaluation) for row in mistakes[:_MAX_THUMBNAILS]), class_="images"
        ),
    ]
    if len(mistakes) > _MAX_THUMBNAILS:
        rows = [
            [
                draw_path(evaluation.images.names[result.positions[row]]),
                *_labels(result, row),
                format_percent(float(result.scored.confidence[row]), 1),
            ]
            for row in mistakes[_MAX_THUMBNAILS:]
        ]
        table = draw_table(("Image", "Label", "Predicted", "Confidence"), rows, numbers={3})
        parts.append(element("details", element("summary", f"{len(rows):,} more"), table))
    return join(*parts)


def _draw_mistake(result: ModelResult, row: int, evaluation: Evaluation) -> Markup:
    position = int(result.positions[row])
    (source,) = evaluation.images.sources([position])
    uri = thumbnail_uri(source, result.file.spec.preprocess)
    true, predicted = _labels(result, row)
    kind = "pixelated" if uri is not None and uri.startswith("data:image/png") else None
    image = element("img", src=uri, alt=f"An image of {true}", class_=kind) if uri is not None else ""
    caption = element(
        "figcaption",
        element("b", predicted),
        f" {format_percent(float(result.scored.confidence[row]), 1)}",
        element("br"),
        f"is {true}, {format_percent(float(result.scored.probability[row]), 1)}",
        element("span", one_line(evaluation.images.names[position]), class_="name"),
    )
    return element("figure", image, caption, class_="image")


def _labels(result: ModelResult, row: int) -> tuple[str, str]:
    """Return the label of an image and the predicted one."""
    indices = (result.scored.targets[row], result.scored.predicted[row])
    true, predicted = (shorten(result.labels[index], MAX_LABEL_LENGTH) for index in indices)
    return true, predicted
