"""The same files on every supported onnxruntime, each in its own environment.

`make test` runs the oldest release; `make test-runtimes` runs all of them up to today's newest, and other engines:
OpenVINO through its own API, and onnxruntime-web, which browsers run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from conftest import create_environment, run_checked, run_command
from tracing import Trace, create_traced_environment

from clf_runtime.classifier import Classifier
from clf_runtime.diagnostics.selftest import SelfTest
from clf_runtime.onnx_file import SELFTEST_KEY
from clf_runtime.preprocess import pixels_from_image

OLDEST = "1.15.1"
OTHERS = ("1.16.3", "1.17.3", "1.20.1", "1.23.2", "1.26.0", version("onnxruntime"), "newest")
FILES = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")

# Print the logits of the images in a file's self-test.
ASK = """
import json, sys
import numpy as np
from clf_runtime import Classifier
from clf_runtime.onnx_file import SELFTEST_KEY
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.diagnostics.selftest import SelfTest
classifier = Classifier.load(sys.argv[1], device="cpu")
cases = SelfTest.from_json(classifier.file.metadata[SELFTEST_KEY], "").cases
pixels = np.stack([pixels_from_image(case.image, classifier.spec.preprocess) for case in cases])
json.dump(classifier.run(pixels)[0].tolist(), sys.stdout)
"""

# Classify an image, and stay until stdin ends.
WAIT = """
import sys
from clf_runtime import Classifier
Classifier.load(sys.argv[1]).predict(sys.argv[2])
sys.stdin.read()
"""

# Print the logits of a model for a file of pixels. Arguments: model, pixels, shape.
ASK_OPENVINO = """
import json, sys
import numpy as np
import openvino
shape = json.loads(sys.argv[3])
model = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
answer = model({"image": np.fromfile(sys.argv[2], np.uint8).reshape(shape)})
json.dump(answer["logits"].tolist(), sys.stdout)
"""
ASK_ONNXRUNTIME_WEB = """
import fs from 'fs';
import * as ort from 'onnxruntime-web';
const [model, pixels, shape] = process.argv.slice(2);
const bytes = path => new Uint8Array(fs.readFileSync(path));
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(bytes(model), {executionProviders: ['wasm']});
const {logits} = await session.run({image: new ort.Tensor('uint8', bytes(pixels), JSON.parse(shape))});
const [count, classes] = logits.dims;
const rows = Array.from({length: count}, (_, at) => [...logits.data.slice(at * classes, (at + 1) * classes)]);
console.log(JSON.stringify(rows));
"""


@pytest.fixture(scope="session")
def mobilenet(tmp_path_factory) -> Path:
    """The artifacts folder of a MobileNetV3 with random weights, exported in every precision."""
    import torch
    from odd_images import drawing
    from torchvision.models import mobilenet_v3_small

    home = tmp_path_factory.mktemp("mobilenet")
    for label in ("round", "square"):
        (home / "data" / label).mkdir(parents=True)
        for number in range(12):
            drawing(80 + number, 90).convert("RGB").rotate(30 * number).save(home / f"data/{label}/{number}.png")
    torch.manual_seed(0)
    network = mobilenet_v3_small(num_classes=2).train()
    with torch.no_grad():
        for _ in range(50):  # until the running statistics of batch normalization have settled
            network(torch.rand(8, 3, 64, 64))
    torch.save(network.state_dict(), home / "weights.pt")
    imported = run_command(
        *("clf-import", "--weights", "weights.pt", "--model", "mobilenet_v3_small", "--labels", "round,square"),
        *("--data", "data"),
        cwd=home,
    )
    assert imported.code == 0, imported.err
    # Random weights have no accuracy to lose.
    exported = run_command("clf-export", "-p", "fp32", "-p", "fp16", "-p", "int8", "--max-drop", 100, cwd=home)
    assert exported.code == 0, exported.err
    return home / "artifacts"


@pytest.mark.parametrize("release", [OLDEST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_onnxruntime_gives_the_verified_answers(release, wheel, artifacts, tmp_path):
    device = create_device(release, wheel, tmp_path)
    for name in FILES:
        compare_answers(device, artifacts / name)


@pytest.mark.slow
@pytest.mark.parametrize("release", [OLDEST, *OTHERS])
def test_every_onnxruntime_gives_the_verified_answers_of_a_mobilenet(release, wheel, mobilenet, tmp_path):
    device = create_device(release, wheel, tmp_path)
    for name in FILES:
        compare_answers(device, mobilenet / name)


@pytest.mark.slow
@pytest.mark.parametrize("release", [OLDEST, "newest"])
def test_no_process_connects_anywhere_or_writes_a_file_within_20_seconds(release, wheel, artifacts, tmp_path):
    device = create_device(release, wheel, tmp_path)
    environment = os.environ | create_traced_environment(tmp_path)
    del environment["ORT_DISABLE_TELEMETRY"]  # this process has it from importing clf_runtime
    model, image = artifacts / "model.onnx", next((artifacts / "samples").iterdir())
    commands = {
        "run": (device / "clf-run", "@-", "--model", model),
        "script": (device / "python", "-c", WAIT, model, image),
        "bench": (device / "clf-bench", "--model", model, "--rounds", 1, "--seconds", 4),
    }
    traces = {name: Trace(tmp_path / f"{name}.trace") for name in commands}
    started = [
        subprocess.Popen([*map(str, (*traces[name].prefix, *command))], stdin=subprocess.PIPE, env=environment)
        for name, command in commands.items()
    ]
    started[0].stdin.write(f"{image}\n".encode())
    started[0].stdin.flush()
    # onnxruntime looks its host up after 10 seconds.
    with pytest.raises(subprocess.TimeoutExpired):
        started[0].wait(20)
    for process in started:
        process.communicate()
    assert [process.returncode for process in started] == [0, 0, 0]
    assert [line for trace in traces.values() for line in trace.sockets()] == []
    check_traces(traces.values(), tmp_path)


@pytest.mark.slow
def test_an_export_connects_nowhere_and_writes_only_its_folder(artifacts, tmp_path):
    environment = create_traced_environment(tmp_path)
    shutil.copytree(artifacts, tmp_path / "artifacts")
    trace = Trace(tmp_path / "trace")
    everything = ("-f", "onnx", "-f", "pt2", "-p", "fp32", "-p", "int8", "--overwrite")
    done = run_command("clf-export", *everything, cwd=tmp_path, prefix=trace.prefix, **environment)
    assert done.code == 0, done.err
    # Not its sockets: libuuid opens one to learn the address of the network card, for onnxruntime's quantizer.
    check_traces([trace], tmp_path)


def check_traces(traces: Iterable[Trace], folder: Path) -> None:
    """Fail if a traced process connected anywhere, or wrote outside its own folders."""
    allowed = (folder / "temporary", folder / "artifacts")
    for trace in traces:
        assert trace.connections() == []
        assert [path for path in trace.written() if not any(map(path.is_relative_to, allowed))] == []
    assert list((folder / "home").iterdir()) == []


def create_device(release: str, wheel: Path, folder: Path) -> Path:
    """Return the bin/ folder of an environment with the wheel and a release of onnxruntime."""
    old = release != "newest" and tuple(map(int, release.split(".")[:2])) < (1, 19)
    wanted = "onnxruntime" if release == "newest" else f"onnxruntime=={release}"
    return create_environment(folder / "venv", wheel, wanted, "numpy<2" if old else "numpy") / "bin"


def compare_answers(device: Path, model: Path) -> None:
    """Run the self-test on a device, and compare its logits with those of this environment."""
    report = run_checked(device / "clf-run", "--self-test", "--model", model).stdout
    assert "passed" in report
    assert "labels flipped 0" in report
    there = json.loads(run_checked(device / "python", "-c", ASK, model).stdout)
    here = json.loads(run_checked("python", "-c", ASK, model).stdout)
    assert np.argmax(there, axis=1).tolist() == np.argmax(here, axis=1).tolist()
    if model.name == "model.onnx":
        difference = re.search(r"difference of a logit\| (\S+)", report)
        assert float(difference[1]) <= 1e-4
        assert np.abs(np.subtract(there, here)).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime-web"])
def test_other_engines_give_the_verified_answers(engine, artifacts, mobilenet, tmp_path):
    ask = {"openvino": _openvino, "onnxruntime-web": _onnxruntime_web}[engine](tmp_path)
    for folder in (artifacts, mobilenet):
        for name in FILES:
            classifier = Classifier.load(folder / name, device="cpu")
            selftest = SelfTest.from_json(classifier.file.metadata[SELFTEST_KEY], name)
            pixels = np.stack([pixels_from_image(case.image, classifier.spec.preprocess) for case in selftest.cases])
            pixels.tofile(tmp_path / "pixels")
            there = json.loads(run_checked(*ask, folder / name, tmp_path / "pixels", list(pixels.shape)).stdout)
            verified = [case.logits for case in selftest.cases]
            assert np.abs(np.subtract(there, verified)).max() <= selftest.tolerance, (folder, name)
            if name != "model.int8.onnx":
                assert np.argmax(there, axis=1).tolist() == np.argmax(verified, axis=1).tolist()
            elif engine == "onnxruntime-web":  # integer arithmetic is the same everywhere
                assert np.argmax(there, axis=1).tolist() == classifier.run(pixels)[0].argmax(axis=1).tolist()


def _openvino(folder: Path) -> Sequence[object]:
    (folder / "ask.py").write_text(ASK_OPENVINO)
    return create_environment(folder / "venv", "openvino", "numpy") / "bin/python", folder / "ask.py"


def _onnxruntime_web(folder: Path) -> Sequence[object]:
    if shutil.which("npm") is None:
        pytest.skip("onnxruntime-web needs npm and Node.js")
    run_checked("npm", "install", "--silent", "--ignore-scripts", "--no-package-lock", "onnxruntime-web", cwd=folder)
    (folder / "ask.mjs").write_text(ASK_ONNXRUNTIME_WEB)
    return "node", folder / "ask.mjs"
