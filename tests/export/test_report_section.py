"""The section of report.html about exported files, and export.json, which it shows."""

from __future__ import annotations

import json
import re
import shutil

from clf_export.formats import TARGETS
from clf_export.report_section import write_report_section


def test_the_report_has_a_row_and_a_parity_check_for_every_exported_file(artifacts):
    page = (artifacts / "report.html").read_text()
    assert page.count("Exported files and their parity checks") == 1
    record = json.loads((artifacts / "export.json").read_text())
    assert re.findall(r'<th scope="row"><code>(model\S+)</code></th>', page) == [target.file for target in TARGETS]
    assert re.findall(r"<summary>Parity check of (\S+)</summary>", page) == [target.file for target in TARGETS]
    section = page.partition("Exported files and their parity checks")[2]
    for name, row in record.items():
        assert f"{row['accuracy']:.1%}".rstrip("%") in section
        assert f"(in {row['worst_image']})" in section
        if row["quantization"]:
            assert f"<td>{row['quantization']}</td>" in section, name
    assert "None" not in section


def test_a_section_replaces_the_one_before(artifacts, tmp_path):
    shutil.copy(artifacts / "report.html", tmp_path)
    record = json.loads((artifacts / "export.json").read_text())
    write_report_section(tmp_path, {"model.pt2": record["model.pt2"]})
    page = (tmp_path / "report.html").read_text()
    assert page.count('id="exported"') == 1
    assert re.findall(r"<summary>Parity check of (\S+)</summary>", page) == ["model.pt2"]
    write_report_section(tmp_path, {})
    assert "There are no exported files." in (tmp_path / "report.html").read_text()


def test_without_a_training_report_the_section_is_a_page_of_its_own(artifacts, tmp_path):
    write_report_section(tmp_path, json.loads((artifacts / "export.json").read_text()))
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert len(re.findall(r"<summary>Parity check of", page)) == len(TARGETS)
