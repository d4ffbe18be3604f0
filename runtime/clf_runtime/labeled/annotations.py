"""Classifications as annotation tools export them in JSON: COCO, and Label Studio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clf_runtime.errors import DataError
from clf_runtime.labeled.images import Columns, raise_if_columns_named
from clf_runtime.labeled.rows import Manifest, Row
from clf_runtime.labeled.table import parse_json

# Where the images are beside an export, relative to its folder.
_FOLDERS = ("", "images", "data", "upload")


def read_annotations(path: Path, columns: Columns) -> Manifest:
    """Read a COCO file, or an export of Label Studio as JSON or JSON-MIN; it has no columns to choose.

    Raises:
        UsageError: `columns` names some.
        DataError: It is in none of these formats, or an image has several labels.
        OSError: It cannot be read.
    """
    raise_if_columns_named(path, columns)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8, as JSON must be; export it again") from None
    content = parse_json(text, str(path))
    try:
        rows = list(_rows(path, content))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is not a complete COCO or Label Studio export ({type(error).__name__}: {error}); export it again"
        ) from None
    return Manifest(path, rows, _FOLDERS, skips_unlabeled=True)


def _rows(path: Path, content: Any) -> Iterator[Row]:
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        return _coco_rows(path, content)
    if isinstance(content, list) and content and all(isinstance(task, dict) for task in content):
        return (row for number, task in enumerate(content, 1) for row in _label_studio_rows(f"task {number}", task))
    raise DataError(
        f"{path}: is neither COCO (an object with images, annotations and categories) nor an export of Label Studio "
        "(a list of tasks)"
    )


def _coco_rows(path: Path, content: dict[str, Any]) -> Iterator[Row]:
    """Yield a row for each image and each different category of its annotations, whether they have boxes or not."""
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    labels: dict[Any, dict[str, None]] = {}
    for annotation in content["annotations"]:
        if annotation["category_id"] not in names:
            raise DataError(
                f"{path}: an annotation has the category {annotation['category_id']!r}, which is not listed"
            )
        labels.setdefault(annotation["image_id"], {})[names[annotation["category_id"]]] = None
    for number, image in enumerate(content["images"], 1):
        for label in labels.get(image["id"], {"": None}):
            yield Row(f"image {number}", str(image["file_name"]), label)


def _label_studio_rows(place: str, task: dict[str, Any]) -> Iterator[Row]:
    """Yield a row for each different choice of a task."""
    data = task.get("data", task)  # JSON-MIN has everything in the task itself
    image = next((data[key] for key in ("image", "img", "file", "path", "url") if isinstance(data.get(key), str)), None)
    if image is None:
        raise KeyError(f"no image in {place}")
    choices = _choices_of_results(task) if "annotations" in task else _choices(task)
    for label in dict.fromkeys(choices) or {"": None}:
        yield Row(place, image, label)


def _choices_of_results(task: dict[str, Any]) -> list[str]:
    return [
        str(choice)
        for annotation in task["annotations"]
        if not annotation.get("was_cancelled")
        for result in annotation["result"]
        if result.get("type") == "choices"
        for choice in result["value"]["choices"]
    ]


def _choices(task: dict[str, Any]) -> list[str]:
    choice = next((task[key] for key in ("choice", "label", "class") if key in task), "")
    if isinstance(choice, dict):
        choice = choice["choices"]
    return [str(text) for text in choice] if isinstance(choice, list) else [str(choice)]
