"""What `clf-train --compare` prints: a table, a verdict and the images that changed; or all of it as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from clf_runtime.errors import escape
from clf_train.comparing import ComparedModel, ModelComparison

_MAX_IMAGES = 20  # in the text
_SIGNIFICANT = 0.05
_HEADER = ("artifacts", "model", "input", "accuracy", "95 % interval")


def format_comparison(comparison: ModelComparison) -> str:
    """Return the comparison as text."""
    model, other = comparison.model, comparison.other
    rows = [_describe(comparison, compared) for compared in (model, other)]
    sections = [_format_table([_HEADER, *rows]), _format_verdict(comparison)]
    if comparison.changed:
        changed = [("image", "label", model.name, other.name)]
        changed += [(image.name, image.label, image.predicted, image.other_predicted) for image in comparison.changed]
        sections.append(_format_table(changed[: 1 + _MAX_IMAGES]))
    hidden = len(comparison.changed) - _MAX_IMAGES
    if hidden > 0:
        sections.append(f"and {hidden:,} more; --format json lists all of them")
    return "\n\n".join(sections)


def json_from_comparison(comparison: ModelComparison) -> str:
    """Return the comparison as one JSON object, with all images that changed."""
    return json.dumps(
        {
            "images": comparison.images,
            "models": [
                {
                    "artifacts": model.name,
                    "architecture": model.spec.architecture,
                    "accuracy": model.correct / comparison.images,
                    "interval": comparison.accuracy_interval(model),
                }
                for model in (comparison.model, comparison.other)
            ],
            "difference": comparison.difference,
            "interval": comparison.interval,
            "p_value": comparison.p_value,
            "fixed": comparison.fixed,
            "broken": comparison.broken,
            "changed": [
                {"image": image.name, "label": image.label, "predicted": [image.predicted, image.other_predicted]}
                for image in comparison.changed
            ],
        },
        ensure_ascii=False,
    )


def _describe(comparison: ModelComparison, model: ComparedModel) -> tuple[str, ...]:
    preprocess = model.spec.preprocess
    low, high = comparison.accuracy_interval(model)
    return (
        model.name,
        model.spec.architecture,
        f"{preprocess.height}x{preprocess.width} {preprocess.color}",
        f"{100 * model.correct / comparison.images:.2f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
    )


def _format_verdict(comparison: ModelComparison) -> str:
    low, high = comparison.interval
    model, other = escape(comparison.model.name), escape(comparison.other.name)
    p_value = comparison.p_value
    conclusion = "they differ" if p_value < _SIGNIFICANT else "this may be chance"
    others = len(comparison.changed) - comparison.fixed - comparison.broken
    return (
        f"{model} against {other}: {100 * comparison.difference:+.2f} pp (95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f} pp), exact McNemar p = {p_value:.2g}: {conclusion}\n"
        f"{len(comparison.changed):,} of {comparison.images:,} test images changed: {comparison.fixed:,} fixed, "
        f"{comparison.broken:,} broken, {others:,} wrong in another way"
    )


def _format_table(rows: Sequence[tuple[str, ...]]) -> str:
    rows = [tuple(map(escape, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
