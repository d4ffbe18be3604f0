"""The section of report.html about the exported files and their parity checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clf_export.formats import TARGETS
from clf_train.report.export_section import write_export_section
from clf_train.report.rendering import environment


def write_report_section(folder: Path, record: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the content of export.json, by file name, into the folder's report. Raises OSError."""
    exported = [
        {"name": target.file, "format": target.format, **record[target.file]}
        for target in TARGETS
        if target.file in record
    ]
    section = environment("clf_export").get_template("exported.html.j2").render(files=exported)
    write_export_section(folder, section)
