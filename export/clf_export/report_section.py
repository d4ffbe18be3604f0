"""The part of report.html that says what was exported and proven; a page of its own where no training wrote one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clf_export.formats import TARGETS
from clf_runtime import artifacts, files
from clf_train.report.report import EXPORTED_PLACE, environment

_BEGIN, _END = EXPORTED_PLACE.splitlines()
_PLACE = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)


def write_report_section(folder: Path, record: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what export.json says into the folder's report, complete or not at all. Raises OSError."""
    # In the order of the formats' table.
    order = {target.file: place for place, target in enumerate(TARGETS)}
    known = [
        {"name": name, "format": target.format, **record[name]}
        for name in sorted(record, key=lambda name: order.get(name, len(order)))
        for target in TARGETS
        if target.file == name
    ]
    templates = environment("clf_export")
    section = templates.get_template("exported.html.j2").render(files=known)
    path = folder / artifacts.REPORT
    page = _report(path) or templates.get_template("only_exported.html.j2").render(place=EXPORTED_PLACE)
    # A function, since the section may have what is a group reference to a pattern's replacement.
    files.atomic_write(path, _PLACE.sub(lambda _: f"{_BEGIN}\n{section}\n{_END}", page, count=1).encode())


def _report(path: Path) -> str | None:
    """Give the training's report, unless there is none, or one without a place for this."""
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return page if _PLACE.search(page) else None
