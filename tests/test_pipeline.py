"""The whole pipeline as in the README: train, export, run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import drawing
from PIL import Image, ImageDraw

from clf_runtime import Classifier


def test_the_embedded_digits_from_training_to_predictions(command, tmp_path):
    trained = command("clf-train", "--epochs", 10)
    assert trained.code == 0
    assert "next: clf-export --format onnx" in trained.out

    exported = command("clf-export", "--format", "onnx", "--format", "torchscript")
    assert exported.code == 0
    assert "next: clf-run artifacts/samples" in exported.err

    done = command("clf-run", "artifacts/samples", "--format", "jsonl")
    assert done.code == 0
    records = [json.loads(line) for line in done.out.splitlines()]
    correct = sum(Path(record["path"]).name.startswith(f"{record['label']}-") for record in records)
    assert correct >= 15

    verified = command("clf-run", "--self-test")
    assert verified.code == 0
    assert "labels flipped 0" in verified.out

    # As a library, with the file alone: it needs no other file.
    (tmp_path / "artifacts/model.onnx").rename(tmp_path / "elsewhere.onnx")
    classifier = Classifier.load(tmp_path / "elsewhere.onnx", device="cpu", threads=2)
    for record in records:
        assert classifier.predict(tmp_path / record["path"]).label == record["label"]


def test_a_folder_of_images_from_training_to_predictions(command, tmp_path):
    random = np.random.default_rng(0)
    for label in ("circle", "square"):
        (tmp_path / "shapes" / label).mkdir(parents=True)
        for number in range(60):
            draw_shape(label, random).save(tmp_path / "shapes" / label / f"{number}.jpg", quality=90)
    assert command("clf-train", "--data", "shapes", "-a", "mine", "--weights", "none", "--epochs", 20).code == 0
    exported = command("clf-export", "-a", "mine")
    assert exported.code == 0, exported.err
    for label in ("circle", "square"):
        draw_shape(label, random).resize((900, 700)).save(tmp_path / f"{label}.png")
    done = command("clf-run", "-a", "mine", "circle.png", "square.png")
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["circle", "square"]


def draw_shape(label: str, random: np.random.Generator) -> Image.Image:
    """Return a dark shape at a random place on a light background."""
    image = Image.new("RGB", (90, 70), tuple(random.integers(200, 256, 3).tolist()))
    x, y, side = random.integers(22, 30), random.integers(14, 20), random.integers(28, 36)
    draw = ImageDraw.Draw(image)
    paint = draw.ellipse if label == "circle" else draw.rectangle
    paint((int(x), int(y), int(x + side), int(y + side)), fill=tuple(random.integers(0, 90, 3).tolist()))
    return image


def test_the_runtime_predicts_what_pytorch_predicts(artifacts, tmp_path):
    """Encoded images of any size: the runtime against torchvision's transforms and eager PyTorch."""
    from clf_export.parity.reference import Reference
    from clf_train.models.saved import load_saved_model

    model = load_saved_model(artifacts)
    paths = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        drawing(8 + number, 50 - number).save(path)
        paths.append(path)
    wanted = Reference(model.model, model.spec).compute_logits([path.read_bytes() for path in paths])
    results = list(Classifier.load(artifacts / "model.onnx").predict_files(paths))
    assert [result.index for result in results] == wanted.argmax(axis=1).tolist()


@pytest.fixture(scope="session")
def mnist(tmp_path_factory, test_data):
    """A model trained for one epoch on MNIST and exported: enough to test agreement, if not accuracy."""
    from conftest import run_command

    folder = tmp_path_factory.mktemp("mnist")
    root = ("--data-root", test_data / "mnist")
    trained = run_command("clf-train", "--data", "mnist", *root, "--epochs", 1, cwd=folder)
    assert trained.code == 0, trained.err
    exported = run_command("clf-export", *root, cwd=folder)
    assert exported.code == 0, exported.err
    return folder


@pytest.mark.slow
def test_ten_thousand_png_files_get_the_labels_of_pytorch(mnist, test_data, command, tmp_path):
    from torchvision import datasets, transforms

    from clf_train.models.saved import load_saved_model

    test = datasets.MNIST(test_data / "mnist", train=False)
    (tmp_path / "png").mkdir()
    for index, (image, _) in enumerate(test):
        image.save(tmp_path / "png" / f"{index:05d}.png")
    model = load_saved_model(mnist / "artifacts")
    normalize = transforms.Normalize(model.spec.normalize.mean, model.spec.normalize.std)
    images = normalize(torch.stack([transforms.functional.to_tensor(image) for image, _ in test]))
    with torch.inference_mode():
        wanted = [model.spec.labels[index] for index in model.model(images).argmax(1).tolist()]
    done = command("clf-run", "-a", mnist / "artifacts", "png", "--format", "jsonl")
    assert done.code == 0
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [record["path"] for record in records] == [f"png/{index:05d}.png" for index in range(10_000)]
    assert [record["label"] for record in records] == wanted
    assert np.mean([record["label"] == str(target) for record, (_, target) in zip(records, test, strict=True)]) > 0.97


def test_the_makefile_runs_the_demo_and_every_check():
    """`make -n` shows the commands of both targets without running them."""
    root = Path(__file__).parent.parent
    shown = subprocess.run(["make", "-n", "demo", "test"], cwd=root, capture_output=True, text=True, check=True).stdout
    for expected in (
        "clf-train --overwrite",
        "clf-export --format onnx --format torchscript",
        "clf-run artifacts/samples",
        "ruff check",
        "mypy",
        "lint-imports",
        "coverage run -m pytest -n 2 --dist loadscope tests/runtime",
        "pytest -n 2 --dist loadscope --ignore tests/runtime",
    ):
        assert expected in shown
    assert sys.version_info >= (3, 10)
