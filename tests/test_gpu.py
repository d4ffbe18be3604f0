"""The same answers on a GPU: `make test-gpu`, on a machine with an NVIDIA GPU and its driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import BIN, Command, create_environment, run_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that PyTorch can use"),
]

PRECISIONS = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a device with a GPU: the wheel with onnxruntime-gpu, CUDA and cuDNN, and no PyTorch."""
    needs = (f"clf-edge[gpu,serve] @ {wheel.as_uri()}", "onnxruntime-gpu[cuda,cudnn]")
    return create_environment(tmp_path_factory.mktemp("gpu") / "venv", *needs) / "bin"


def run_on(device: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the device."""
    program, *arguments = map(str, command)
    return subprocess.run([device / program, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_self_test_passes_on_the_gpu(device, artifacts, name):
    done = run_on(device, "clf-run", "--self-test", "--device", "cuda", "-m", artifacts / name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CUDAExecutionProvider" in done.stdout


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_gpu_gives_the_labels_of_the_cpu(device, artifacts, digits, name):
    labels = []
    for where in ("cpu", "cuda"):
        done = run_on(device, "clf-run", digits, "-r", "--device", where, "-m", artifacts / name, "--format", "jsonl")
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        labels.append({record["path"]: record["label"] for record in records})
    assert labels[0] == labels[1]
    assert len(labels[0]) > 100


def test_auto_uses_the_gpu_and_the_doctor_finds_nothing_wrong(device, artifacts, samples):
    done = run_on(device, "clf-run", samples[0], "-m", artifacts / "model.onnx", "--format", "jsonl")
    assert json.loads(done.stdout)["provider"] == "CUDAExecutionProvider"
    done = run_on(device, "clf-run", "--doctor", "--device", "cuda", "-m", artifacts / "model.onnx")
    assert done.returncode == 0, done.stdout


def test_clf_eval_runs_on_the_gpu(device, artifacts, digits):
    done = run_on(device, "clf-eval", artifacts / "model.fp16.onnx", "--data", digits, "--device", "cuda")
    assert done.returncode == 0, done.stderr
    assert "CUDAExecutionProvider" in done.stdout


@pytest.mark.parametrize("model", ["small-resnet", "resnet18"])
def test_training_on_a_gpu_resumes_and_gives_a_model_that_the_cpu_reads(command: Command, tmp_path, model):
    options = ("--model", model, "--epochs", "2", "--device", "cuda", "--checkpoint-every", "1s")
    running = subprocess.Popen([BIN / "clf-train", *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("epoch 1/2"):
            running.send_signal(signal.SIGTERM)
            break
    running.communicate()
    assert running.returncode == 143
    resumed = command("clf-train", *options, "--resume")
    assert resumed.code == 0, resumed.err
    state = torch.load(tmp_path / "artifacts/model.pt", weights_only=True)
    assert {value.device.type for value in state.values()} == {"cpu"}
    exported = command("clf-export")
    assert exported.code == 0, exported.err


def test_a_gpu_without_bfloat16_trains_in_float16(tmp_path):
    # Every current GPU has it, so only the question is answered otherwise.
    code = (
        "import sys, torch\n"
        "torch.cuda.is_bf16_supported = lambda *_, **__: False\n"
        "from clf_train.start import clf_train\n"
        "sys.exit(clf_train())\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CLF_")}
    done = subprocess.run(
        [BIN / "python", "-c", code, "--epochs", "2", "--device", "cuda"],
        cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_one_process_of_torchrun_trains_with_nccl(tmp_path):
    done = run_command(
        "torchrun", "--nproc-per-node", "1", "--no-python", BIN / "clf-train", "--epochs", "1", cwd=tmp_path
    )
    assert done.code == 0, done.err
