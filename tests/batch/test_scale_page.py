"""The examples of docs/scale.md run."""

from __future__ import annotations

import re
import shutil

import pytest
from conftest import ROOT

CODE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/scale.md").read_text(), flags=re.DOTALL)


def test_the_spark_example_compiles():
    (code,) = CODE
    compile(code, "scale.md", "exec")


@pytest.mark.slow
def test_the_spark_example_classifies_and_reports_damaged_images(model, samples, tmp_path, monkeypatch):
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    pytest.importorskip("pandas", reason="pandas is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    if shutil.which("java") is None:
        pytest.skip("there is no JVM")
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "model.onnx")
    (tmp_path / "images").mkdir()
    for sample in samples:
        shutil.copy(sample, tmp_path / "images")
    (tmp_path / "images/bad.png").write_text("no image")
    (code,) = CODE
    exec(compile(code, "scale.md", "exec"), {"__name__": "__main__"})
    rows = {row["path"].rpartition("/")[2]: row for row in parquet.read_table("results").to_pylist()}
    assert len(rows) == len(samples) + 1
    assert rows["bad.png"]["error_kind"] == "not-an-image"
    assert sum(row["label"] == name[0] for name, row in rows.items()) >= len(samples) - 1
