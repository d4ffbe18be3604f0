"""The store: what is installed works here, is not older than what ran, and replaces the version before at once."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rewriting import failing_on_white, rewritten, with_serial
from serving import serving

from clf_deploy.cli import command as group
from clf_deploy.store.install import InstallOptions, activate, collect_garbage, install
from clf_deploy.store.status import describe
from clf_runtime import Classifier, DataError, InvalidModelError, MachineError, onnx_file
from clf_runtime.diagnostics.selftest import SelfTest
from clf_runtime.onnx_file import SELFTEST_KEY
from clf_runtime.signature import signature_path
from clf_runtime.store.probation import MAX_STARTS, MIN_FAILURES, BatchCounts, ProbationWatch
from clf_runtime.store.state import Probation, State
from clf_runtime.store.store import Store, version_name

CPU = InstallOptions(device="cpu", threads=1)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def models(model, tmp_path_factory) -> dict[int | None, Path]:
    """The same model with several serial numbers."""
    folder = tmp_path_factory.mktemp("models")
    return {serial: with_serial(model, folder / f"{serial}.onnx", serial) for serial in (None, 1, 2, 3)}


@pytest.fixture(scope="session")
def broken(model, tmp_path_factory) -> Path:
    """A model with serial 9 that fails its self-test."""
    folder = tmp_path_factory.mktemp("broken")
    path = with_serial(model, folder / "9.onnx", 9)
    test = SelfTest.from_json(onnx_file.read(model).metadata[SELFTEST_KEY], "")
    shifted = tuple(replace(case, logits=case.logits[::-1]) for case in test.cases)
    return rewritten(path, folder / "broken.onnx", **{SELFTEST_KEY: SelfTest(1e-4, shifted).to_json()})


@pytest.fixture(scope="session")
def failing(model, tmp_path_factory) -> Path:
    """A model with serial 9 that gives the same answers, but ends with an error for a batch of white images."""
    folder = tmp_path_factory.mktemp("failing")
    return with_serial(failing_on_white(model, folder / "failing.onnx"), folder / "9.onnx", 9)


def put(store: Store, model: Path, **options: object) -> str:
    return install(model, store, replace(CPU, **options), print).version


def put_anyhow(store: Store, model: Path, probation_s: float = 0.0) -> str:
    """Install a model without looking whether it works, as if it had worked on the day of its installation."""
    name = version_name(onnx_file.read(model))
    with store.locked():
        (store.folder / "staged").mkdir()
        shutil.copy(model, store.folder / "staged/model.onnx")
        store.add(store.folder / "staged", name)
        store.activate(name, onnx_file.read(model).spec.serial, probation_s)
    return name


def test_versions_lie_side_by_side_and_the_newest_runs(store, models):
    names = [put(store, models[serial]) for serial in (1, 2)]
    assert [name.partition("-")[0] for name in names] == ["1", "2"]
    assert (store.current, store.previous(State.read(store.folder))) == (names[1], names[0])
    assert Classifier.load(store.folder / "current/model.onnx").spec.serial == 2
    assert {path.name for path in store.folder.iterdir()} == {"current", "versions", "state.json"}
    assert put(store, models[2]) == names[1]  # again: nothing changes
    assert State.read(store.folder).history == tuple(names)


def test_rollback_never_leads_forward(store, models):
    names = [put(store, models[serial]) for serial in (1, 2, 3)]
    with store.locked():
        assert store.roll_back() == names[1]
        assert store.roll_back() == names[0]
        with pytest.raises(DataError, match="no earlier version"):
            store.roll_back()
    assert store.current == names[0]
    assert activate("3-", store, CPU).version == store.current == names[2]
    assert store.previous(State.read(store.folder)) == names[0]


def test_an_older_model_needs_permission_also_after_a_rollback(store, models):
    put(store, models[1])
    put(store, models[2])
    with pytest.raises(DataError, match="found serial 1, expected at least 2"):
        put(store, models[1])
    with pytest.raises(DataError, match="found serial none, expected at least 2"):
        put(store, models[None])
    with store.locked():
        store.roll_back()
    with pytest.raises(DataError, match="expected at least 2"):
        put(store, models[1])
    assert put(store, models[None], allow_downgrade=True) == store.current
    with pytest.raises(DataError, match="expected at least 2"):
        activate("1-", store, CPU)
    assert State.read(store.folder).highest_serial == 2


def test_models_without_a_serial_replace_each_other(store, models, tmp_path):
    other = rewritten(models[None], tmp_path / "other.onnx", comment="another")
    put(store, models[None])
    put(store, other)
    assert put(store, models[None]) == store.current


def test_what_does_not_work_here_is_not_installed(store, models, broken, signed, keys, tmp_path):
    put(store, models[1])
    before = (store.current, store.versions)
    (tmp_path / "damaged.onnx").write_bytes(models[2].read_bytes()[:-100])
    for path, options, reason in (
        (tmp_path / "damaged.onnx", {}, r"damaged\.onnx: not an ONNX file"),
        (broken, {}, r"broken\.onnx: its self-test failed on this machine"),
        (models[2], {"max_latency_s": 1e-9}, r"2\.onnx: one image takes .* expected at most 1e-06"),
        (models[2], {"require_signature": (keys.public,)}, "it has no signature"),
        (signed, {"require_signature": (keys.other_public,)}, "signed with another key"),
        (rewritten(models[2], tmp_path / "s.onnx", **{SELFTEST_KEY: "{}"}), {}, r"s\.onnx: its clf\.selftest cannot"),
    ):
        with pytest.raises(InvalidModelError, match=reason):
            put(store, path, **options)
    assert (store.current, store.versions) == before
    assert put(store, signed, require_signature=(keys.public,), max_latency_s=60.0) == store.current
    assert Classifier.load(store.folder / "current/model.onnx", require_signature=keys.public)


def test_a_model_that_changes_while_it_is_copied_is_rejected(store, models, monkeypatch):
    from clf_deploy.store import install as module

    copy = shutil.copyfile
    monkeypatch.setattr(module.shutil, "copyfile", lambda _, target: copy(models[3], target))
    with pytest.raises(InvalidModelError, match="changed while it was copied"):
        put(store, models[2])


def test_a_version_that_was_damaged_on_disk_is_replaced(store, models):
    name = put(store, models[1])
    store.path(name).write_bytes(b"damaged")
    assert "not an ONNX file" in describe(store).versions[0].problem
    assert put(store, models[1]) == name
    assert describe(store).versions[0].problem == ""


def test_garbage_is_what_neither_runs_nor_ran_before(store, models):
    assert collect_garbage(store) == ()
    names = [put(store, models[serial]) for serial in (1, 2, 3)]
    assert collect_garbage(store) == (names[0],)
    assert store.versions == tuple(names[1:])
    assert not list(store.folder.glob(".*"))


def test_a_version_is_found_by_the_start_of_its_name(store, models):
    put(store, models[1])
    put(store, models[2], activate=False)
    assert store.current == store.find("1")
    for name in ("", "7"):
        with pytest.raises(DataError, match="versions are called"):
            store.find(name)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"history": ["../x"], "highest_serial": null, "failed": {}, "probation": null}'],
)
def test_a_damaged_state_is_an_error_and_not_forgotten(store, models, text):
    put(store, models[1])
    (store.folder / "state.json").write_text(text)
    with pytest.raises(DataError, match=r"state\.json: not what clf-deploy writes"):
        put(store, models[2])


def test_another_process_that_changes_the_store_is_waited_for(store, models, monkeypatch):
    from clf_runtime.store import store as module

    put(store, models[1])
    with store.locked():
        monkeypatch.setattr(module, "_SECONDS_TO_WAIT", 0.1)
        with pytest.raises(MachineError, match=r"clf-deploy .* writes this folder"), Store(store.folder).locked():
            pass


def test_the_commands_from_key_to_rollback(command, models, samples, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLF_STORE", "store")
    shutil.copy(models[1], tmp_path / "a.onnx")
    shutil.copy(models[2], tmp_path / "b.onnx")
    for line in (
        "keygen fleet.pem",
        "sign a.onnx b.onnx --key fleet.pem",
        "install a.onnx --require-signature fleet.pub.pem",
        "install b.onnx --require-signature fleet.pub.pem --no-activate",
        "activate 2 --require-signature fleet.pub.pem --max-latency 1min --probation 10min",
        "gc",
        "rollback",
    ):
        group.main(line.split(), standalone_mode=False)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "self-test passed on CPUExecutionProvider" in shown.err
    shown = json.loads(command("clf-deploy", "status", "--format", "json", "--store", "store").out)
    assert [row["role"] for row in shown["versions"]] == ["current", ""]
    assert shown["current"] == shown["versions"][0]["version"]
    assert shown["highest_serial"] == 2
    group.main(["status"], standalone_mode=False)
    table = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in table] == ["role", "current", "-"]
    assert command("clf-run", "-m", "store/current/model.onnx", samples[0]).code == 0
    refused = command("clf-deploy", "install", "a.onnx", "--store", "store")
    assert (refused.code, "found serial 1, expected at least 2" in refused.error) == (3, True)


def test_a_version_that_cannot_be_made_the_current_one_leaves_the_old_one(store, models, monkeypatch, capfd):
    old = put(store, models[1])

    def fail(self: Path, target: Path, target_is_directory: bool = False) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as context:
        context.setattr(Path, "symlink_to", fail)
        with pytest.raises(MachineError, match=f"could not be made the current version .*; {old} is, as before"):
            put(store, models[2])
    assert store.current == old
    assert put(store, models[2]) == store.current
    put(store, models[3])
    group.main(["gc", "--store", str(store.folder)], standalone_mode=False)
    assert f"removed {old}" in capfd.readouterr().err


def test_a_folder_in_the_place_of_the_link_is_an_error(store, models):
    (store.folder / "current").mkdir(parents=True)
    with pytest.raises(DataError, match="not the symbolic link of a store"):
        put(store, models[1])


def test_what_the_device_has_to_say_is_passed_on(store, models, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(Classifier, "warning", "--device auto uses the CPU: no CUDA")
    install(models[1], store, CPU, lines.append)
    assert lines == ["--device auto uses the CPU: no CUDA"]


def test_status_says_what_is_on_probation(store, models):
    put(store, models[1])
    name = put(store, models[2], probation_s=60.0)
    assert f"on probation for 60 s; falls back to {store.previous(State.read(store.folder))}" in str(describe(store))
    assert State.read(store.folder).probation.version == name


# Probation.


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def on_probation(store, models) -> tuple[str, str]:
    """The names of the old version and of the new one, which is on probation."""
    return put(store, models[1]), put(store, models[2], probation_s=600.0)


def test_a_version_that_crashes_is_left_and_not_installed_again(store, models, on_probation, lines):
    old, new = on_probation
    for _ in range(MAX_STARTS):
        ProbationWatch(store, lines.append).begin()  # and no end
        assert store.current == new
    ProbationWatch(store, lines.append).begin()
    assert store.current == old
    assert lines == [f"{new} failed its probation (the service ended 3 times without being stopped); {old} runs again"]
    with pytest.raises(DataError, match="failed on this machine before"):
        put(store, models[2])
    assert "failed here" in describe(store).versions[1].problem
    assert activate(new, store, CPU).is_active
    assert State.read(store.folder).failed == {}


def test_orderly_stops_are_no_crashes_and_time_ends_the_probation(store, on_probation, lines, monkeypatch):
    from clf_runtime.store import probation as module

    for _ in range(2 * MAX_STARTS):
        watch = ProbationWatch(store, lines.append)
        watch.begin()
        watch.check(BatchCounts(), BatchCounts())
        watch.end()
    assert not lines
    watch.begin()
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
    watch.check(BatchCounts(100, 0), BatchCounts())
    assert lines == [f"{on_probation[1]} has passed its probation"]
    assert State.read(store.folder).probation is None
    watch.check(BatchCounts(0, 100), BatchCounts())
    watch.end()
    assert (store.current, len(lines)) == (on_probation[1], 1)


def test_a_higher_rate_of_failed_batches_ends_the_probation(store, on_probation, lines):
    watch = ProbationWatch(store, lines.append)
    watch.begin()
    watch.check(BatchCounts(0, MIN_FAILURES - 1), BatchCounts(100, 0))
    watch.check(BatchCounts(95, 5), BatchCounts(90, 10))  # not worse than before
    assert store.current == on_probation[1]
    watch.check(BatchCounts(80, 20), BatchCounts(90, 10))
    assert store.current == on_probation[0]
    assert "20% of its batches failed, 10% before" in lines[0]


def test_only_the_version_on_probation_is_judged(store, models, on_probation, lines):
    watch = ProbationWatch(store, lines.append)
    watch.begin()
    put(store, models[3])  # meanwhile
    assert not watch.fail("whatever")
    watch.end()
    watch._ends_s = 0.0
    watch.check(BatchCounts(), BatchCounts())
    assert (store.current.partition("-")[0], lines) == ("3", [])


def test_a_store_that_cannot_be_written_does_not_end_the_service(store, on_probation, lines):
    (store.folder / "state.json").write_text("damaged")
    ProbationWatch(store, lines.append).begin()
    (store.folder / "state.json").unlink()
    (store.folder / "state.json").mkdir()
    ProbationWatch(store, lines.append).begin()
    assert [line.partition(" (")[0] for line in lines] == 2 * ["no probation: the store cannot be changed"]


def test_a_state_that_was_written_before_a_kill_means_nothing(store, models):
    old = put(store, models[1])
    State((old, "2-x"), 2, {}, Probation("2-x", old, 600.0)).write(store.folder)
    ProbationWatch(store, print).begin()
    with store.locked(), pytest.raises(DataError, match="no earlier version"):
        store.roll_back()
    assert store.current == old


def test_a_service_reloads_what_is_installed_and_leaves_what_fails(store, models, broken, signed, keys):
    old = put(store, models[1])
    path = store.folder / "current/model.onnx"
    with serving(path, "--threads", 1) as running:
        new = put(store, models[2])
        running.wait_until(lambda: running.metric('clf_reloads_total{outcome="loaded"}') == 1)
        assert running.request("/readyz").body.decode() == f"ready: {onnx_file.read(models[2]).sha256}\n"
        put_anyhow(store, broken, probation_s=600.0)
        running.wait_until(lambda: store.current == new)
        assert running.request("/readyz").body.decode() == f"ready: {onnx_file.read(models[2]).sha256}\n"
    assert any("failed its probation" in line and f"{new} runs again" in line for line in running.lines)
    put_anyhow(store, broken, probation_s=600.0)
    with serving(path, "--threads", 1) as running:
        assert onnx_file.read(models[2]).sha256.encode() in running.request("/readyz").body
    assert store.current == new != old


def test_a_service_leaves_a_version_that_fails_more_often_than_the_one_before(store, models, failing, samples):
    path = store.folder / "current/model.onnx"
    old = put(store, models[1])
    white = io.BytesIO()
    Image.new("L", (8, 8), 255).save(white, "PNG")
    with serving(path, "--threads", 1) as running:
        assert running.request("/v1/classify", white.getvalue()).status == 200
        new = put(store, failing, probation_s=600.0)
        running.wait_until(lambda: running.metric('clf_reloads_total{outcome="loaded"}') == 1)
        for count in range(MIN_FAILURES):
            assert store.current == new, count
            assert running.request("/v1/classify", samples[0].read_bytes()).status == 200
            status, message = running.request("/v1/classify", white.getvalue()).error
            assert status == 503, message
        running.wait_until(lambda: store.current == old)
        running.wait_until(lambda: running.metric('clf_reloads_total{outcome="loaded"}') == 2)
        assert running.request("/v1/classify", white.getvalue()).status == 200
    (line,) = (line for line in running.lines if "failed its probation" in line)
    assert f"{new} failed its probation (50% of its batches failed, 0% before); {old} runs again" in line
    with pytest.raises(DataError, match="failed on this machine before"):
        put(store, failing)


def test_a_service_counts_its_crashes(store, models, on_probation):
    path = store.folder / "current/model.onnx"
    for _ in range(MAX_STARTS):
        with serving(path, "--threads", 1) as running:
            running.process.kill()
            running.process.wait()
    with serving(path, "--threads", 1) as running:
        assert onnx_file.read(models[1]).sha256.encode() in running.request("/readyz").body
    assert store.current == on_probation[0]
    assert signature_path(path).exists() is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process can be forked here")
@pytest.mark.parametrize(
    ("installed", "operation", "fewest"),
    [
        ((), "install 1", 10),
        ((1,), "install 2", 10),
        ((1, 2), "rollback", 3),
        ((1, 2), "activate 1-", 5),
        ((1, 2, 3), "gc", 5),
    ],
)
def test_a_kill_or_a_power_failure_at_any_change_leaves_the_old_version_or_the_new_one(
    models, tmp_path, installed, operation, fewest
):
    store = Store(tmp_path / "store")
    store.folder.mkdir()
    for serial in installed:
        put(store, models[serial])
    words = [str(models[int(word)]) if word.isdigit() else word for word in operation.split()]

    script = Path(__file__).with_name("crashing.py")
    done = subprocess.run([sys.executable, script, store.folder, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"{operation}: {done.stdout.strip()} changes")
    assert int(done.stdout.split()[-1]) >= fewest
