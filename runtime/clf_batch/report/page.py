"""A report as one HTML file, with the images whose labels have changed."""

from __future__ import annotations

from collections.abc import Iterator

from clf_batch.inputs.reading import read_images
from clf_batch.inputs.units import ImageFile
from clf_batch.report.compare import Change, Comparison
from clf_batch.report.counts import BINS, Counts
from clf_batch.report.parts import CompleteRun
from clf_batch.report.text import describe_remainder
from clf_runtime.evaluation.document import draw_card, html_document
from clf_runtime.evaluation.figures import draw_table
from clf_runtime.evaluation.formatting import format_images, format_percent, one_line, shorten
from clf_runtime.evaluation.markup import Markup, element
from clf_runtime.evaluation.thumbnails import thumbnail_uri
from clf_runtime.image_files import MAX_IMAGE_BYTES
from clf_runtime.spec import Preprocess

_LABEL_LENGTH = 80
_ORIGINAL = Preprocess("RGB", 224, 224, "squash", 1.0, "bilinear", (255, 255, 255))  # only its background matters


def html_from_report(run: CompleteRun, counts: Counts, old: CompleteRun | None, comparison: Comparison | None) -> str:
    """Return the page as the text of one HTML file. The images on it are read again, where that is possible."""
    failed = sum(counts.failures.values())
    title = f"Results in {shorten(run.place, _LABEL_LENGTH)}"
    content = [
        element("h1", title),
        element("p", f"{format_images(counts.images)}, {failed:,} failed, model {run.model[:12]}"),
    ]
    if old is not None and comparison is not None:
        content.append(draw_card("Changed labels", *_draw_comparison(run, old, comparison)))
    content.append(draw_card("Labels", _draw_counts("Label", counts.labels, counts.images)))
    if failed:
        content.append(draw_card("Failures", _draw_counts("Kind", counts.failures, counts.images)))
    scores = {f"{n / BINS:.1f} to {(n + 1) / BINS:.1f}": count for n, count in enumerate(counts.histogram)}
    content.append(draw_card("Scores", _draw_counts("Score", scores, counts.images)))
    return html_document(title, *content)


def _draw_counts(heading: str, counts: dict[str, int], total: int) -> Markup:
    rows = [
        (shorten(name, _LABEL_LENGTH), f"{count:,}", format_percent(count / total if total else None))
        for name, count in counts.items()
    ]
    return draw_table((heading, "Images", "Share"), rows, numbers={1, 2})


def _draw_comparison(run: CompleteRun, old: CompleteRun, comparison: Comparison) -> Iterator[Markup]:
    share = format_percent(comparison.changed / comparison.common if comparison.common else None)
    yield element(
        "p",
        f"{comparison.changed:,} of {format_images(comparison.common)} ({share}) have another label than in "
        f"{one_line(old.place)}, model {old.model[:12]}.",
    )
    for line in describe_remainder(comparison):
        yield element("p", line, class_="note")
    if comparison.changed:
        rows = [
            (shorten(before, _LABEL_LENGTH), shorten(after, _LABEL_LENGTH), f"{count:,}")
            for (before, after), count in comparison.transitions.items()
        ]
        yield draw_table(("Before", "Now", "Images"), rows, numbers={2})
        yield element("h3", "The changes of which both models are most certain")
        folder = str(run.manifest.run["folder"])
        yield element("div", *(_draw_change(change, folder) for change in comparison.most_changed), class_="images")


def _draw_change(change: Change, folder: str) -> Markup:
    (source,) = read_images([ImageFile(change.path)], folder, MAX_IMAGE_BYTES)
    uri = thumbnail_uri(source, _ORIGINAL)
    kind = "pixelated" if uri is not None and uri.startswith("data:image/png") else None
    image = element("img", src=uri, alt="", class_=kind) if uri is not None else ""
    caption = element(
        "figcaption",
        element("b", shorten(change.new.label or "", _LABEL_LENGTH)),
        f" {format_percent(change.new.score, 1)}",
        element("br"),
        f"was {shorten(change.old.label or '', _LABEL_LENGTH)}, {format_percent(change.old.score, 1)}",
        element("span", one_line(change.path), class_="name"),
    )
    return element("figure", image, caption, class_="image")
