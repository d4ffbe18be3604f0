"""From a data set to a finished artifacts folder: load, decode, fit, judge on held-out pictures, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from clf_runtime import artifacts, files
from clf_runtime.errors import DataRefused
from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import ModelSpec, Preprocess
from clf_train import checkpoint
from clf_train.dataset import Dataset, FilePictures, Int64Array, Pictures
from clf_train.evaluate import judged, probabilities_of
from clf_train.fit import Fitting, device_for, steps_per_epoch
from clf_train.history import Epoch, csv_from_history
from clf_train.order import Order, Plan, dataset_for, plan_for
from clf_train.provenance import provenance
from clf_train.report import html_from_run
from clf_train.samples import write_samples
from clf_train.trained import refuse_finished, state_dict_bytes
from clf_train.weights import starting_point


class Watch(Protocol):
    """Who is told how it goes."""

    def decoding(self, pictures: int) -> None: ...
    def decoded(self) -> None: ...
    def fitting(self, order: str, epochs: int, steps: int) -> None: ...
    def stepped(self) -> None: ...
    def epoch(self, row: Epoch) -> None: ...
    def noticed(self, what: str) -> None: ...


def train(
    order: Order, artifacts_folder: Path, watch: Watch, overwrite: bool = False, resume: bool = False
) -> ModelSpec:
    """Train and write a finished model. Raises DataRefused, MachineUnable, ModelRefused, OSError.

    After every epoch a checkpoint is kept, from which `resume` goes on to the very weights that an undisturbed
    training gives; without it an unfinished training is only replaced where `overwrite` says so.
    """
    unfinished = checkpoint.exists(artifacts_folder)
    refuse_finished(artifacts_folder, overwrite or (resume and unfinished))
    if unfinished and not (overwrite or resume):
        raise DataRefused(
            f"{artifacts_folder}: has an unfinished training; --resume goes on with it, --overwrite starts anew"
        )
    # Before the work, not after it: a folder that cannot be written to.
    obsolete = (*artifacts.DERIVED, *artifacts.UNFINISHED)
    with files.folder_or_absent(artifacts_folder, last=artifacts.SPEC, obsolete=obsolete) as staging:
        device = device_for(order.device)
        dataset = dataset_for(order)
        plan = plan_for(order, dataset)
        how, normalize, recipe = plan.preprocess, plan.normalize, plan.recipe
        torch.manual_seed(order.seed)
        model = starting_point(plan.architecture, order.weights, how.channels, len(dataset.labels))
        train_part, validation, test = _decoded(dataset, how, watch)
        watch.fitting(
            _summary(order, plan, dataset, device), recipe.epochs, steps_per_epoch(len(train_part[0]), recipe)
        )
        repeated = dataset.repeated()
        if repeated:
            watch.noticed(
                f"{len(repeated)} of {len(dataset.test):,} held-out pictures are among those trained on too "
                f"({repeated[0]}, say): the accuracy will look better than it is"
            )
        fitting = Fitting(model, train_part, validation, recipe, normalize, seed=order.seed, device=device)
        identity = _identity(order, plan, dataset)
        if resume:
            _go_on(fitting, checkpoint.newest(artifacts_folder, identity, watch.noticed), watch)
        else:
            checkpoint.discard(artifacts_folder)
        _run(fitting, artifacts_folder, identity, watch)
        logits, temperature, metrics = judged(model, validation, test, dataset.test_name, normalize, device)
        weights = state_dict_bytes(model)
        spec = ModelSpec(
            architecture=plan.architecture,
            labels=dataset.labels,
            preprocess=how,
            normalize=normalize,
            temperature=temperature,
            metrics=metrics,
            provenance=provenance(order, dataset, recipe.epochs, weights),
        )
        page = html_from_run(spec, fitting.history, *test, probabilities_of(logits, temperature))
        _write(staging, spec, weights, fitting.history, page, dataset.test)
    return spec


def _run(fitting: Fitting, folder: Path, identity: Mapping[str, str], watch: Watch) -> None:
    try:
        while not fitting.done:
            watch.epoch(fitting.epoch(watch.stepped))
            checkpoint.save(folder, fitting.state(), identity)
    except KeyboardInterrupt:
        kept = (
            f"--resume goes on after epoch {len(fitting.history)}" if checkpoint.exists(folder) else "nothing is kept"
        )
        raise KeyboardInterrupt(kept) from None


def _go_on(fitting: Fitting, state: Mapping[str, Any] | None, watch: Watch) -> None:
    if state is None:
        watch.noticed("there is no checkpoint to go on from; starting from the beginning")
        return
    fitting.restore(state)
    watch.noticed(f"going on after epoch {len(fitting.history)}")


def _identity(order: Order, plan: Plan, dataset: Dataset) -> dict[str, str]:
    """Name all that the weights depend on, so that a checkpoint of something else is not gone on with."""
    return {
        "--data": order.data,
        "--seed": str(order.seed),
        "--weights": str(order.weights),
        "--held-out": str(order.held_out),
        "model": plan.architecture,
        "input": str(plan.preprocess),
        "recipe": str(plan.recipe),
        "labels": ", ".join(dataset.labels),
        "training pictures": dataset.train.fingerprint(),
        "validation pictures": dataset.validation.fingerprint(),
        "held-out pictures": dataset.test.fingerprint(),
        "torch": str(torch.__version__),
    }


def _decoded(dataset: Dataset, how: Preprocess, watch: Watch) -> list[tuple[UInt8Array, Int64Array]]:
    parts = (dataset.train, dataset.validation, dataset.test)
    watch.decoding(sum(len(part) for part in parts if isinstance(part, FilePictures)))
    return [
        (part.decoded(how, watch.decoded) if len(part) else np.empty((0, *how.shape), np.uint8), part.targets)
        for part in parts
    ]


def _summary(order: Order, plan: Plan, dataset: Dataset, device: torch.device) -> str:
    how = plan.preprocess
    reason = f" ({plan.reason})" if plan.reason else ""
    return (
        f"{plan.architecture}{reason} on {order.data}: {len(dataset.train):,} pictures to train on, "
        f"{len(dataset.validation):,} for validation, {len(dataset.test):,} held out, {len(dataset.labels)} classes, "
        f"{how.height}x{how.width} {how.color}, on {device}"
    )


def _write(
    staging: Path, spec: ModelSpec, weights: bytes, history: Sequence[Epoch], page: str, held_out: Pictures
) -> None:
    (staging / artifacts.STATE_DICT).write_bytes(weights)
    (staging / artifacts.HISTORY).write_text(csv_from_history(history), encoding="utf-8", newline="\n")
    (staging / artifacts.REPORT).write_text(page, encoding="utf-8")
    (staging / artifacts.SPEC).write_text(spec.to_json() + "\n", encoding="utf-8")
    write_samples(staging / artifacts.SAMPLES, held_out, spec)
