"""`clf-batch report`: numbers of a run, and differences between two."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("pyarrow", reason="the extra [batch] is not installed")
from batch_runs import rows_of, run_here

from clf_batch import cli
from clf_batch.manifest import MANIFEST_FILE


@pytest.fixture
def report(monkeypatch, capsys):
    """A function that runs `clf-batch report` in this process, and returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clf-batch", "report", *map(str, arguments)])
        monkeypatch.setattr(cli, "execute", lambda command: command.main(standalone_mode=False) or sys.exit(0))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def two_runs(options, digits, artifacts, tmp_path):
    """The folders of two runs over the same images, of float32 and of int8 with its labels moved by one class."""
    run_here(options(digits, "gone.png", output=str(tmp_path / "old")))
    run_here(options(digits, "gone.png", output=str(tmp_path / "new"), path=artifacts / "model.int8.onnx"))
    return tmp_path / "old", tmp_path / "new"


def test_the_numbers_are_those_of_the_rows(report, options, digits, tmp_path):
    run_here(options(digits, "gone.png"))
    rows = rows_of(tmp_path / "out")
    _, out, _ = report(tmp_path / "out", "--format", "json")
    content = json.loads(out)
    assert content["images"] == len(rows)
    assert content["labels"]["7"] == sum(row["label"] == "7" for row in rows)
    assert content["failures"] == {"not-found": 1}
    assert sum(content["score_histogram"]) == len(rows) - 1
    _, text, _ = report(tmp_path / "out")
    assert f"{len(rows)} images, 1 failed, model " in text
    assert "not-found" in text


def test_changes_between_two_models_are_found_whatever_the_shards_are(report, two_runs, options, digits, tmp_path):
    old, new = two_runs
    before, now = ({row["path"]: row["label"] for row in rows_of(folder)} for folder in two_runs)
    changed = {path for path in before if before[path] != now[path]}
    run_here(options(digits, "gone.png", output=str(tmp_path / "other-shards"), shard_size=33))
    for other in (old, tmp_path / "other-shards"):
        _, out, _ = report(new, "--compare", other, "--format", "json")
        comparison = json.loads(out)["comparison"]
        assert comparison["changed"] == len(changed)
        assert comparison["common"] == len(before) - 1
        assert {change["path"] for change in comparison["most_changed"]} == changed
        assert (comparison["only_old"], comparison["only_new"]) == (0, 0)


def test_the_page_shows_the_images_and_escapes_their_names(report, two_runs, tmp_path):
    old, new = two_runs
    _, _, err = report(new, "--compare", old, "--html", tmp_path / "report.html")
    assert "wrote" in err
    page = (tmp_path / "report.html").read_text()
    _, out, _ = report(new, "--compare", old, "--format", "json")
    assert page.count("<figure") == json.loads(out)["comparison"]["changed"]
    assert page.count("data:image/png") == page.count("<figure")
    assert "<script" not in page


def test_results_that_are_not_complete_or_changed_are_reported(report, options, samples, tmp_path):
    from clf_runtime.errors import DataError

    run_here(options(samples[0]))
    (part,) = (tmp_path / "out").glob("*.parquet")
    part.write_bytes(part.read_bytes() + b" ")
    with pytest.raises(DataError, match="was changed or damaged after the run"):
        report(tmp_path / "out")
    part.unlink()
    with pytest.raises(DataError, match=r"is missing; remove _SUCCESS\.json"):
        report(tmp_path / "out")
    (tmp_path / "out" / MANIFEST_FILE).write_text("[]")
    with pytest.raises(DataError, match=r"its _SUCCESS.json is damaged"):
        report(tmp_path / "out")
    (tmp_path / "out" / MANIFEST_FILE).unlink()
    with pytest.raises(DataError, match="the run is not complete; --resume completes it"):
        report(tmp_path / "out")
