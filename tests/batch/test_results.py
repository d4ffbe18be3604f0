"""From shards to files of results, with the worker in this process: Ray only decides where it runs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra [batch] is not installed")
from batch_runs import begin, identity_of, rows_of, run_here
from odd_images import odd_images

from clf_batch import manifest
from clf_batch.callbacks import Callbacks
from clf_batch.inputs.find import find_units
from clf_batch.inputs.reading import read_images
from clf_batch.inputs.units import ImageFile
from clf_batch.manifest import MANIFEST_FILE, RUN_FILE, Manifest
from clf_batch.run import run
from clf_batch.shards import make_shards
from clf_batch.storage import open_storage
from clf_batch.worker import ModelFiles
from clf_runtime import Classifier
from clf_runtime.errors import DataError, InvalidModelError, MachineError, UsageError
from clf_runtime.predictions import Failure
from clf_runtime.sources import find_images


def test_labels_and_scores_are_those_of_clf_run_to_the_last_bit(options, digits, model, tmp_path):
    (tmp_path / "odd").mkdir()
    odd_images(tmp_path / "odd")
    arguments = [str(digits), str(tmp_path / "odd"), str(tmp_path / "gone.png")]
    run_here(options(*arguments, top=3, shard_size=40))
    with Classifier.load(model, device="cpu", threads=2, workers=2) as classifier:
        expected = list(classifier.predict_sources(find_images(arguments, True), top=3))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == len(expected) > 390
    for row, (source, result) in zip(rows, expected, strict=True):
        assert row["path"] == source.name
        if isinstance(result, Failure):
            assert (row["error_kind"], row["error_message"]) == (result.kind, result.message)
            assert row["label"] is row["index"] is row["score"] is row["top"] is None
        else:
            assert (row["label"], row["index"], row["score"]) == (result.label, result.index, result.score)
            assert [(top["label"], top["score"]) for top in row["top"]] == [(t.label, t.score) for t in result.top]
            assert (row["model"], row["provider"]) == (classifier.sha256, classifier.provider)


def test_logits_are_a_column_of_their_own(options, samples, model, tmp_path):
    run_here(options(samples[0], "gone.png", logits="float16"))
    row, gone = rows_of(tmp_path / "out")
    with Classifier.load(model, device="cpu") as classifier:
        logits, _ = classifier.run(classifier.decoder.decode(samples[0])[None])
    assert row["logits"] == logits[0].astype("float16").tolist()
    assert gone["logits"] is None


def test_a_shard_whose_file_is_there_is_not_done_again(options, digits, tmp_path):
    run = options(digits, shard_size=100)
    done = run_here(run)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    (tmp_path / "out" / MANIFEST_FILE).unlink()
    damaged, removed, *_ = sorted(files)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    removed.unlink()
    again = run_here(options(digits, shard_size=100, resume=True))
    assert again.parts == done.parts
    changed = {path for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert changed == {damaged, removed}


def test_what_is_left_of_other_slices_is_removed_before_the_manifest_is_written(options, tmp_path, samples):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, sample in enumerate(samples[:6]):
        shutil.copy(sample, folder / f"{number}.png")
    run = options(folder, shard_size=4)
    begin(run).score(next(make_shards(find_units(run.inputs), 4)))
    shutil.copy(samples[7], folder / "00.png")  # each name moves by one
    done = run_here(options(folder, shard_size=4, resume=True))
    assert sorted(row["path"] for row in rows_of(tmp_path / "out")) == sorted(map(str, folder.iterdir()))
    assert done.images == 7


def test_an_output_that_is_not_empty_needs_a_decision(options, samples, tmp_path):
    run_here(options(samples[0]))
    storage = open_storage(str(tmp_path / "out"))

    def check(**changes):
        run = options(samples[0], **changes)
        return manifest.check(storage, identity_of(run), run.results)

    with pytest.raises(UsageError, match="is not empty; --resume continues an interrupted run, --overwrite"):
        check()
    assert check(resume=True).complete.images == 1
    with pytest.raises(DataError, match=r"another top \(1, now 2\); use the same one, or start over with --overwrite"):
        check(resume=True, top=2)
    (tmp_path / "out/notes.txt").write_text("mine")
    assert check(overwrite=True, top=2).complete is None
    begin(options(samples[0], overwrite=True, top=2))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RUN_FILE, "notes.txt"]
    (tmp_path / "out" / RUN_FILE).unlink()
    with pytest.raises(UsageError, match=r"has files that clf-batch did not write \(notes.txt\)"):
        check(overwrite=True)


def test_a_run_with_another_model_is_not_resumed(options, samples, artifacts, tmp_path):
    begin(options(samples[0]))
    other = options(samples[0], resume=True, path=artifacts / "model.int8.onnx")
    with pytest.raises(DataError, match="the interrupted run has another model"):
        begin(other)


def test_a_worker_refuses_what_is_not_the_run(options, samples, artifacts, tmp_path):
    worker = begin(options(samples[0]))
    with pytest.raises(InvalidModelError, match="it has changed since the start"):
        worker.open(ModelFiles.read(artifacts / "model.int8.onnx"))
    (tmp_path / "out" / RUN_FILE).write_text("{}")
    with pytest.raises(MachineError, match=r"does not see the _run\.json of this run"):
        worker.open(ModelFiles.read(options(samples[0]).model.path))
    with pytest.raises(MachineError, match="another clf-batch has taken it over"):
        manifest.finish(open_storage(str(tmp_path / "out")), "out", Manifest({}, (), (), {}, 0.0))
    worker._setup = replace(worker._setup, identity=replace(worker._setup.identity, clf_version="0.0"))
    with pytest.raises(MachineError, match=r"the driver 0\.0; update it"):
        worker.open(ModelFiles(b"", None))


def test_the_model_must_be_signed_as_the_driver_and_the_machine_of_a_worker_require(
    options, model, samples, tmp_path, monkeypatch
):
    sign = pytest.importorskip("clf_deploy.signing.sign")
    pytest.importorskip("model_signing", reason="the extra [sign] is not installed")
    signed = tmp_path / "signed.onnx"
    shutil.copy(model, signed)
    private, public = sign.create_key(tmp_path / "fleet.pem", "P-256")
    worker = begin(options(samples[0], path=signed, output=str(tmp_path / "unsigned")))
    with pytest.raises(InvalidModelError, match="it has no signature"):
        run(options(samples[0], path=signed, require_signature=(public,)), Callbacks(print, print, print))
    (tmp_path / "policy.toml").write_text('require_signature = "fleet.pub.pem"')
    monkeypatch.setenv("CLF_POLICY", str(tmp_path / "policy.toml"))
    with pytest.raises(InvalidModelError, match="it has no signature"):
        worker.open(ModelFiles.read(signed))
    sign.Signer(private).sign(signed)
    assert worker.open(ModelFiles.read(signed)).provider == "CPUExecutionProvider"


def test_a_store_that_fails_ends_the_run_and_not_the_images(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    from clf_batch.inputs import reading

    def fail(*_: object, **__: object) -> list[object]:
        return [OSError("503 slow down")] * 16

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", fail)
    monkeypatch.setattr(reading, "_WAITS_S", (0.0, 0.0))
    units = [ImageFile(f"memory:///bucket/{number}.png") for number in range(16)]
    with pytest.raises(MachineError, match=r"the store failed for 16 files in sequence \(503 slow down\)"):
        list(read_images(units, "", 1000))


def test_the_manifest_has_counts_and_digests(options, samples, tmp_path):
    run_here(options(*samples, "gone.png"))
    content = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert (content["images"], content["failures"]) == (17, 1)
    assert content["run"]["model"] == rows_of(tmp_path / "out")[0]["model"]
    assert all(re.fullmatch(r"[0-9a-f]{64}", part["sha256"]) for part in content["parts"])


def test_results_can_be_behind_a_url(options, samples):
    import fsspec

    files = fsspec.filesystem("memory")
    run_here(options(samples[0], output="memory://results/2026"))
    names = [Path(name).name for name in sorted(files.ls("/results/2026", detail=False))]
    assert names[:2] == [MANIFEST_FILE, RUN_FILE]
    assert names[2].startswith("part-0000000-")
    run_here(options(samples[1], output="memory://results/2026", overwrite=True))
    assert len(files.ls("/results/2026", detail=False)) == 3
    files.rm("/results", recursive=True)
