"""From a data set to a finished artifacts folder: load, decode, fit, judge on held-out pictures, write."""

from __future__ import annotations

import hashlib
import io
import platform
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
import torch
import torchvision

import clf_runtime
from clf_runtime import artifacts, files
from clf_runtime.errors import DataRefused
from clf_runtime.preprocess import UInt8Array, upright_image
from clf_runtime.spec import Color, Fit, Metrics, ModelSpec, Normalize, Preprocess, Provenance
from clf_train import builtin, folder
from clf_train.dataset import Dataset, FilePictures, Int64Array, Pictures, in_turns
from clf_train.evaluate import fitted_temperature, logits_of, probabilities_of, quality_of
from clf_train.fit import device_for, fit, steps_per_epoch
from clf_train.history import Epoch, csv_from_history
from clf_train.models import build
from clf_train.recipe import Recipe, recipe_for
from clf_train.registry import dataset_row
from clf_train.report import html_from_run
from clf_train.trained import state_dict_bytes

_SAMPLES = 16
_SAMPLE_SIDE = 512  # pixels, at most; a folder's photographs are samples, not an archive
_SMALLEST_SIDE, _LARGEST_SIDE = 8, 64  # what the small networks are made for

# The first layer is followed by batch normalisation, so only the rough range matters; and with inverted
# pictures among the others the true mean is 0.5.
_MEAN = _STD = 0.5


@dataclass(frozen=True)
class Order:
    """What is to be trained, as the person said it; None leaves a choice to the data."""

    data: str = "digits"
    data_root: str = "data"
    model: str = "small-resnet"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    size: tuple[int, int] | None = None  # (height, width)
    color: Color | None = None
    fit: Fit = "crop"
    held_out: float = 0.2
    seed: int = 0
    device: str = "auto"
    command: str = ""


class Watch(Protocol):
    """Who is told how it goes."""

    def decoding(self, pictures: int) -> None: ...
    def decoded(self) -> None: ...
    def fitting(self, order: str, epochs: int, steps: int) -> None: ...
    def stepped(self) -> None: ...
    def epoch(self, row: Epoch) -> None: ...


def dataset_for(order: Order) -> Dataset:
    """Load the data set that an order names. Raises DataRefused, MachineUnable."""
    row = dataset_row(order.data)
    if row is not None:
        return builtin.load(row, Path(order.data_root), order.held_out, order.seed)
    return folder.load(Path(order.data), order.held_out, order.seed)


def train(order: Order, artifacts_folder: Path, watch: Watch, overwrite: bool = False) -> ModelSpec:
    """Train and write a finished model. Raises DataRefused, MachineUnable, ModelRefused, OSError."""
    if (artifacts_folder / artifacts.SPEC).exists() and not overwrite:
        raise DataRefused(f"{artifacts_folder}: has a finished model; --overwrite replaces it, -a names another folder")
    # Before the work, not after it: a folder that cannot be written to.
    with files.folder_or_absent(artifacts_folder, last=artifacts.SPEC, obsolete=artifacts.DERIVED) as staging:
        device = device_for(order.device)
        dataset = dataset_for(order)
        how = _preprocess(order, dataset)
        recipe = _recipe(order, dataset, how)
        train_part, validation, test = _decoded(dataset, how, watch)
        torch.manual_seed(order.seed)
        model = build(order.model, how.channels, len(dataset.labels))
        normalize = Normalize((_MEAN,) * how.channels, (_STD,) * how.channels)
        watch.fitting(_summary(order, dataset, how, device), recipe.epochs, steps_per_epoch(len(train_part[0]), recipe))
        history = []
        for row in fit(
            model, train_part, validation, recipe, normalize, seed=order.seed, device=device, on_step=watch.stepped
        ):
            history.append(row)
            watch.epoch(row)
        temperature = _temperature(model, validation, normalize, device)
        logits = logits_of(model, test[0], normalize, device)
        weights = state_dict_bytes(model)
        quality = quality_of(logits, test[1], temperature)
        spec = ModelSpec(
            architecture=order.model,
            labels=dataset.labels,
            preprocess=how,
            normalize=normalize,
            temperature=temperature,
            metrics=Metrics(dataset.test_name, len(test[0]), quality.accuracy, quality.loss, quality.calibration_error),
            provenance=_provenance(order, dataset, recipe, weights),
        )
        page = html_from_run(spec, history, *test, probabilities_of(logits, temperature))
        _write(staging, spec, weights, history, page, dataset.test)
    return spec


def _preprocess(order: Order, dataset: Dataset) -> Preprocess:
    row = dataset_row(order.data)
    if row is not None:
        size, color = (row.size, row.size), row.color
    else:
        assert isinstance(dataset.train, FilePictures)
        side, color = folder.survey(dataset.train)
        size = (min(_LARGEST_SIDE, max(_SMALLEST_SIDE, side)),) * 2
    height, width = order.size or size
    color = order.color or color
    return Preprocess(
        color=color,
        height=height,
        width=width,
        fit=order.fit,
        crop_ratio=1.0,
        resample="bilinear",
        background=(255,) * (1 if color == "L" else 3),
    )


def _recipe(order: Order, dataset: Dataset, how: Preprocess) -> Recipe:
    recipe = recipe_for(order.data, len(dataset.train), how.color)
    return replace(
        recipe,
        epochs=order.epochs or recipe.epochs,
        batch_size=order.batch_size or recipe.batch_size,
        learning_rate=order.learning_rate or recipe.learning_rate,
    )


def _decoded(dataset: Dataset, how: Preprocess, watch: Watch) -> list[tuple[UInt8Array, Int64Array]]:
    parts = (dataset.train, dataset.validation, dataset.test)
    watch.decoding(sum(len(part) for part in parts if isinstance(part, FilePictures)))
    return [
        (part.decoded(how, watch.decoded) if len(part) else np.empty((0, *how.shape), np.uint8), part.targets)
        for part in parts
    ]


def _temperature(
    model: torch.nn.Module, validation: tuple[UInt8Array, Int64Array], normalize: Normalize, device: torch.device
) -> float:
    if not len(validation[0]):
        return 1.0
    return fitted_temperature(logits_of(model, validation[0], normalize, device), validation[1])


def _summary(order: Order, dataset: Dataset, how: Preprocess, device: torch.device) -> str:
    return (
        f"{order.model} on {order.data}: {len(dataset.train):,} pictures to train on, {len(dataset.validation):,} for "
        f"validation, {len(dataset.test):,} held out, {len(dataset.labels)} classes, "
        f"{how.height}x{how.width} {how.color}, on {device}"
    )


def _provenance(order: Order, dataset: Dataset, recipe: Recipe, weights: bytes) -> Provenance:
    row = dataset_row(order.data)
    return Provenance(
        data=order.data,
        data_root=order.data_root if row is not None and row.source == "download" else None,
        fingerprint=dataset.test.fingerprint(),
        held_out=order.held_out,
        seed=order.seed,
        epochs=recipe.epochs,
        state_dict_sha256=hashlib.sha256(weights).hexdigest(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=order.command,
        versions={
            "clf-edge": clf_runtime.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    )


def _write(
    staging: Path, spec: ModelSpec, weights: bytes, history: Sequence[Epoch], page: str, held_out: Pictures
) -> None:
    (staging / artifacts.STATE_DICT).write_bytes(weights)
    (staging / artifacts.HISTORY).write_text(csv_from_history(history), encoding="utf-8", newline="\n")
    (staging / artifacts.REPORT).write_text(page, encoding="utf-8")
    (staging / artifacts.SPEC).write_text(spec.to_json() + "\n", encoding="utf-8")
    samples = staging / artifacts.SAMPLES
    samples.mkdir()
    for name, content in _samples(held_out, spec):
        (samples / name).write_bytes(content)


def _samples(pictures: Pictures, spec: ModelSpec) -> list[tuple[str, bytes]]:
    """Give 16 held-out pictures as PNG files named LABEL-N.png, the classes taken in turn."""
    numbers: Counter[str] = Counter()
    samples = []
    for index in in_turns(pictures.targets, _SAMPLES):
        label = re.sub(r"[^\w.+-]+", "-", spec.labels[pictures.targets[index]])[:80]
        numbers[label] += 1
        samples.append((f"{label}-{numbers[label]}.png", _sample(pictures, index, spec.preprocess)))
    return samples


def _sample(pictures: Pictures, index: int, how: Preprocess) -> bytes:
    content = pictures.encoded(index)
    if not isinstance(pictures, FilePictures):
        return content
    image = upright_image(content, how)
    image.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
