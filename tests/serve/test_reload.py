"""The model is replaced while the service runs."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rewriting import rewritten
from serving import RunningService, serving

from clf_runtime.diagnostics.selftest import SelfTest
from clf_runtime.onnx_file import SELFTEST_KEY, read


@pytest.fixture(scope="module")
def renamed(model, tmp_path_factory) -> Path:
    """The same model with other labels: `new 0` …"""
    spec = json.loads(read(model).metadata["clf.spec"])
    spec["labels"] = [f"new {label}" for label in spec["labels"]]
    return rewritten(model, tmp_path_factory.mktemp("renamed") / "model.onnx", **{"clf.spec": json.dumps(spec)})


@pytest.fixture
def live(model, tmp_path) -> Iterator[RunningService]:
    """A service of tmp_path/model.onnx."""
    shutil.copy(model, tmp_path / "model.onnx")
    with serving(tmp_path / "model.onnx") as running:
        yield running


def replace(source: Path, target: Path) -> None:
    """Replace a file as an update does: at once."""
    shutil.copy(source, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


def reload(running: RunningService, outcome: str) -> None:
    """Send SIGHUP, and wait until the model was replaced or refused."""
    name = f'clf_reloads_total{{outcome="{outcome}"}}'
    before = running.metric(name)
    running.process.send_signal(signal.SIGHUP)
    running.wait_until(lambda: running.metric(name) == before + 1)


def test_a_file_that_is_replaced_is_loaded_and_a_bad_one_is_refused(live, model, renamed, tmp_path, samples):
    path, image, label = tmp_path / "model.onnx", samples[0].read_bytes(), samples[0].name[0]
    replace(renamed, path)
    live.wait_until(lambda: live.request("/v1/classify", image).json["label"] == f"new {label}")
    assert live.request("/readyz").body.decode() == f"ready: {read(renamed).sha256}\n"
    assert read(renamed).sha256 in live.request("/metrics").body.decode()
    test = SelfTest.from_json(read(model).metadata[SELFTEST_KEY], "")
    shifted = tuple(type(case)(case.name, case.image, case.logits[::-1]) for case in test.cases)
    wrong = rewritten(model, tmp_path / "wrong", **{SELFTEST_KEY: SelfTest(1e-4, shifted).to_json()})
    for content in (b"", b"no model", model.read_bytes()[:-100], wrong.read_bytes()):
        path.write_bytes(content)
        reload(live, "refused")
    path.unlink()
    reload(live, "refused")
    assert live.request("/v1/classify", image).json["label"] == f"new {label}"
    replace(model, path)
    reload(live, "loaded")
    assert live.request("/v1/classify", image).json["label"] == label
    lines = [line for line in live.lines if "refused the new model" in line]
    assert len(lines) == 5
    assert "self-test failed" in lines[3]
    assert "model not found" in lines[4]
    assert sum("replaces" in line for line in live.lines) == 2


@pytest.mark.parametrize("reloads", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_no_request_is_lost_while_models_are_replaced_under_load(live, model, renamed, tmp_path, samples, reloads):
    problems: list[object] = []
    counts = [0] * 4
    is_over = threading.Event()

    def ask(client: int) -> None:
        while not is_over.is_set():
            path = samples[counts[client] % len(samples)]
            answer = live.request("/v1/classify", path.read_bytes())
            expected = live.request("/v1/classify", path.read_bytes()) if answer.status != 200 else answer
            if answer.status != 200 or answer.json["label"].removeprefix("new ") != right[path]:
                problems.append((answer.status, expected.body))
            counts[client] += 1

    right = {path: live.request("/v1/classify", path.read_bytes()).json["label"] for path in samples}
    clients = [threading.Thread(target=ask, args=(number,)) for number in range(len(counts))]
    for client in clients:
        client.start()
    for number in range(reloads):
        replace((renamed, model)[number % 2], tmp_path / "model.onnx")
        reload(live, "loaded")
    is_over.set()
    for client in clients:
        client.join()
    assert not problems
    assert min(counts) > 0


def test_a_model_that_cannot_be_served_ends_the_command_with_one_line(command, model, tmp_path):
    missing = command("clf-serve", "--model", "gone.onnx", "--port", 0)
    assert (missing.code, "model not found" in missing.error) == (3, True)
    test = SelfTest.from_json(read(model).metadata[SELFTEST_KEY], "")
    shifted = tuple(type(case)(case.name, case.image, case.logits[::-1]) for case in test.cases)
    rewritten(model, tmp_path / "bad.onnx", **{SELFTEST_KEY: SelfTest(1e-4, shifted).to_json()})
    failed = command("clf-serve", "--model", "bad.onnx", "--port", 0)
    assert (failed.code, "bad.onnx: its self-test failed on this machine" in failed.error) == (3, True)
