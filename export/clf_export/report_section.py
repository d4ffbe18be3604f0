"""The part of report.html that says what was exported and proven."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clf_export.formats import TARGETS
from clf_train.report.report import environment, write_export_section


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
    write_export_section(folder, environment("clf_export").get_template("exported.html.j2").render(files=known))
