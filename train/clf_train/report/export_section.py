"""The place in report.html where clf-export writes about the exported files."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup

from clf_runtime import artifacts, files
from clf_train.report.rendering import environment

# The export section is between these; empty until the first export.
_BEGIN, _END = "<!-- exported -->", "<!-- /exported -->"
_EXPORT_SECTION = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
EMPTY_EXPORT_SECTION = Markup(f"{_BEGIN}\n{_END}")


def write_export_section(folder: Path, section: str) -> None:
    """Insert the export section into a folder's report, or replace it.

    Args:
        folder: the artifacts folder. If training wrote no report there, the page contains only this section.
        section: trusted HTML.

    Raises:
        OSError: the report cannot be written; the existing one is unchanged.
    """
    path = folder / artifacts.REPORT
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        page = ""
    if not _EXPORT_SECTION.search(page):
        page = environment().get_template("only_exported.html.j2").render(export_section=EMPTY_EXPORT_SECTION)
    # A function, since the section may contain what re.sub would read as a reference to a group.
    page = _EXPORT_SECTION.sub(lambda _: f"{_BEGIN}\n{section}\n{_END}", page, count=1)
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(page.encode("utf-8"))
